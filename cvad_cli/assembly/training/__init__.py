"""Fitting and calibrating a detector on good images."""
