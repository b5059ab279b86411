"""The commands without the command line: each task takes settings and returns a frozen record; none prints."""
