"""What kqs.toml says, checked, and what local or remote workers run by it."""
