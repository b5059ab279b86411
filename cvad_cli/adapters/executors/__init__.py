"""Executors behind `ports.Executor`: this process, processes beside it, or a Ray cluster does the work."""
