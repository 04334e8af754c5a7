"""Workers away from their server: ``kqs worker``."""
