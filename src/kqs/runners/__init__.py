"""Runners execute attempts: Python callables and commands, in worker processes."""
