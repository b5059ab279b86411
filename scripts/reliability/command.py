"""The third level of tests: checks that take minutes to hours. One that has passed is not repeated.

    scripts/long_checks                           # all that have not passed yet, then the tables
    scripts/long_checks --list                    # names, what their number counts, and which have finished
    scripts/long_checks folder-swaps=20 models=60 # these alone, with other numbers
    scripts/long_checks soak --again              # once more
    scripts/long_checks --table                   # the tables of docs/reliability.md, nothing is run

Results are kept in runs/long_checks/state.json. The exit status is 1 where a check failed.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from reliability.damaged_images import check_damaged_images
from reliability.folder_swaps import check_folder_swaps
from reliability.gates import check_gates
from reliability.models import check_model
from reliability.outcomes import Outcome, Record, State
from reliability.small_run import ROOT
from reliability.tables import tables
from reliability.tests import check_long_tests
from reliability.unpacking import check_unpacking
from reliability.watching import check_soak, check_watch_kills

MODELS = "models"
STATE = ROOT / "runs" / "long_checks" / "state.json"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `run` gets the number of repetitions and an empty folder."""

    run: Callable[[int, Path], Outcome]
    count: int
    unit: str


CHECKS = {
    "unpacking": Check(check_unpacking, 240, "unpackings of one bundle by six processes at once"),
    "folder-swaps": Check(check_folder_swaps, 200, "kills of a process that swaps a folder"),
    "watch-kills": Check(check_watch_kills, 30, "kills of predict --watch"),
    "damaged-images": Check(check_damaged_images, 20_000, "damaged image files"),
    "gates": Check(check_gates, 400, "simulated runs per case"),
    "soak": Check(check_soak, 60, "minutes of predict --watch"),
    "long-tests": Check(check_long_tests, 1, "runs of pytest -m long"),
}
MODEL_LIMIT_S = 300


def all_checks(arguments: Sequence[str]) -> dict[str, Check]:
    """The checks by name; each model of anomalib is one of its own, so that a stopped run goes on with the next.

    The models are left out where only other checks are named: to list them takes an import of anomalib.
    """
    if arguments and not any(argument.startswith("model") for argument in arguments):
        return CHECKS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anomalib imports deprecated modules
        from cvad_cli.adapters.anomalib_models import model_names

    models = {
        f"model:{name}": Check(functools.partial(check_model, name), MODEL_LIMIT_S, "seconds for this model at most")
        for name in model_names()
    }
    return {**CHECKS, **models}


def chosen(arguments: Sequence[str], known: dict[str, Check]) -> dict[str, int]:
    """Name -> count, of what the command line names; `models` stands for every model. Raises SystemExit."""
    counts: dict[str, int] = {}
    for argument in arguments or known:
        name, _, number = argument.partition("=")
        names = [each for each in known if each.startswith("model:")] if name == MODELS else [name]
        if name not in {MODELS, *known} or (number and not number.isdigit()):
            raise SystemExit(f"{argument}: expected a name of --list, with =NUMBER or without")
        counts |= {each: int(number) if number else known[each].count for each in names}
    return counts


def run_check(name: str, check: Check, count: int) -> Record:
    """Run a check in a folder of its own. An error of any kind is a problem of this check alone."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cvad_check_", ignore_cleanup_errors=True) as scratch:
        try:
            outcome = check.run(count, Path(scratch))
        except Exception:  # noqa: BLE001 - the other checks go on
            outcome = Outcome({}, [traceback.format_exc(limit=-3).strip()])
    for problem in outcome.problems:
        print(f"{name}: {problem}", file=sys.stderr)
    finished = f"{datetime.now(timezone.utc):%Y-%m-%d} {revision()}"
    return Record(count, outcome, time.monotonic() - started, finished)


def revision() -> str:
    """The short name of the commit, with + where the tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/long_checks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="NAME[=NUMBER]", help="all, where none is named")
    parser.add_argument("--again", action="store_true", help="repeat what has passed")
    parser.add_argument("--list", action="store_true", help="list the checks and end")
    parser.add_argument("--table", action="store_true", help="print the tables of what has finished and end")
    parser.add_argument("--state", type=Path, default=STATE, help="the file that remembers results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and has not passed; the exit status."""
    options = parsed(arguments)
    state = State(options.state)
    if options.table:
        return report(state)
    known = all_checks(options.checks)
    if options.list:
        for name, check in known.items():
            record = state.get(name)
            print(f"{name}={check.count}  {check.unit}{'' if record is None else '; finished ' + record.finished}")
        return 0
    for name, count in chosen(options.checks, known).items():
        record = state.get(name)
        if record and record.count == count and not record.outcome.problems and not options.again:
            print(f"{name}={count}: passed on {record.finished}; --again repeats it", file=sys.stderr)
            continue
        print(f"{name}={count}: begins", file=sys.stderr, flush=True)
        state.put(name, run_check(name, known[name], count))
    return report(state)


def report(state: State) -> int:
    """Print the tables of all that has finished; the exit status."""
    print(tables(state.records))
    return int(any(record.outcome.problems for record in state.records.values()))
