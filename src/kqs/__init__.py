"""KQS: a job service in one command."""
