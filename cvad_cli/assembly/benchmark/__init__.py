"""Measuring a trained bundle on this machine."""
