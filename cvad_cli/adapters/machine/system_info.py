"""Describes the machine that a figure was measured on, and the memory that this process uses."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvad_cli.config.processors import usable_processors


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, system, and how busy the machine is right now."""
    return {
        "processor": _processor(),
        "cores": usable_processors(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def peak_memory_bytes() -> int:
    """The peak resident memory of this process, in bytes; 0 if the system does not report it.

    Linux's getrusage includes the parent's memory at the start of this process; /proc does not.
    """
    return _status_bytes("VmHWM") or _rusage_bytes()


def memory_bytes() -> int:
    """The resident memory of this process now, in bytes; its peak if only that is known."""
    return _status_bytes("VmRSS") or _rusage_bytes()


def _status_bytes(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _rusage_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, platform.processor() or platform.machine())
    units = sorted(_instruction_sets(lines) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8"})
    return f"{name} ({', '.join(units)})" if units else name


def _instruction_sets(lines: Sequence[str]) -> set[str]:
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return set(flags.split())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
