"""The engine that serves detectors on a CPU."""
