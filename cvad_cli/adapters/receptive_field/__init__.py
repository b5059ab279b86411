"""Receptive fields of torch modules: reads the layers of a running module and measures what reaches a cell."""

from __future__ import annotations
