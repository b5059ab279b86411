"""Several processes unpack one bundle into one folder at the same moment: each gets it whole, and nothing is left."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvad_cli.adapters.executors.bundle_transfer import BundleArchive, pack, unpack
from reliability.outcomes import Outcome

WORKERS = 6
PATIENCE_S = 60


def check_unpacking(tries: int, scratch: Path) -> Outcome:
    """`tries` unpackings by six processes, half of them over a damaged copy."""
    rounds = -(-tries // (2 * WORKERS))
    problems = [
        f"{'damaged' if damaged else 'empty'} target: {problem}"
        for damaged in (False, True)
        for problem in unpack_together(scratch / str(damaged), rounds, damaged=damaged)
    ]
    return Outcome({"unpackings": 2 * rounds * WORKERS, "failed": len(problems)}, problems)


def unpack_together(scratch: Path, rounds: int, *, damaged: bool) -> list[str]:
    """What went wrong when all workers unpacked one archive, once per round; each round has a fresh target."""
    origin, cache = scratch / "origin", scratch / "cache"
    (origin / "deeper").mkdir(parents=True)
    (origin / "manifest.json").write_text("{}", encoding="utf-8")
    for number in range(3):
        (origin / "deeper" / f"{number}.bin").write_bytes(bytes([number]) * 200_000)
    archive = replace(pack(origin), origin=str(scratch / "not seen here"))
    if damaged:
        for number in range(rounds):
            (unpack(archive, cache / str(number)) / "deeper" / "1.bin").write_bytes(b"short")
    context = multiprocessing.get_context("spawn")
    start, failures = context.Barrier(WORKERS), context.SimpleQueue()
    work = (archive, cache, rounds, start, failures)
    workers = [context.Process(target=_unpack_each_round, args=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    problems = []
    for worker in workers:
        worker.join(timeout=PATIENCE_S + rounds)
        if worker.exitcode != 0:
            worker.kill()
            problems.append(f"a worker ended with {worker.exitcode}")
    while not failures.empty():
        problems.append(failures.get())
    left = [path.name for path in cache.rglob("*") if path.name.startswith(".")]
    return problems + [f"the temporary file {name} stays" for name in left]


def _unpack_each_round(archive: BundleArchive, cache: Path, rounds: int, start: Any, failures: Any) -> None:
    for number in range(rounds):
        start.wait(timeout=PATIENCE_S)
        try:
            folder = unpack(archive, cache / str(number))
            wrong = [name for name, held in archive.files.items() if (folder / name).read_bytes() != held.tobytes()]
        except Exception as error:  # noqa: BLE001 - each one is reported
            failures.put(f"round {number}: {error!r}")
        else:
            for name in wrong:
                failures.put(f"round {number}: {name} differs")
