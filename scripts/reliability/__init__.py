"""Checks that take minutes to hours: faults repeated many times, damaged files, every model name, a soak."""
