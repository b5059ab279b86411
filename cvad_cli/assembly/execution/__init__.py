"""Which executor does the work, and with how many threads."""
