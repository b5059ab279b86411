"""How many processors there are for us: fewer than the machine has in most containers. Nothing else counts them."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Processors that this process may use: its affinity, its container's quota and LOKY_MAX_CPU_COUNT count."""
    import loky

    count: int = loky.cpu_count(only_physical_cores=False)
    return count


def computing_threads() -> int:
    """Threads for network and search: one a usable processor, or as many as OMP_NUM_THREADS leaves."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable_processors(), max(1, int(limit))) if limit.isdecimal() else usable_processors()


def reading_threads() -> int:
    """Threads that read ahead where nothing is said: one a usable processor, at most 8."""
    return min(8, usable_processors())
