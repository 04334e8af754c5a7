"""The server: from bytes on a connection to a job in the engine, and from the engine to a worker."""
