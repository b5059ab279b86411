"""Images and paths that a config or the command line names."""
