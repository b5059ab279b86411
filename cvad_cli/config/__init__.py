"""Settings: the schema, and the one door through which YAML becomes typed values."""
