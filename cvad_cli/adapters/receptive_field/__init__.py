"""Receptive fields of torch modules: their layers read off as they run, and what reaches a cell measured."""

from __future__ import annotations
