"""`cvad predict`: lines as pictures are judged, a live line on a terminal, a summary at the end."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from cvad_cli.cli.defects import ConfigFile
from cvad_cli.cli.options import Debug, Device, FailOnDefect, Json, Jsonl, Overrides, Quiet, refuse_both_forms
from cvad_cli.cli.runs import Options, run_each

if TYPE_CHECKING:
    from rich.text import Text

    from cvad_cli.assembly.results import Tally
    from cvad_cli.tasks.predict import Line, PredictSummary

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="[IMAGE|FOLDER|GLOB|VIDEO|camera:N|-]...", help="Pictures; - reads paths from stdin."),
]
Watch = Annotated[
    Path | None, typer.Option("--watch", metavar="FOLDER", help="Inspect each file as it appears, until stopped.")
]
Results = Annotated[
    Path | None, typer.Option("--results", metavar="FILE", help="With --watch: the JSONL file that is its memory.")
]
Table = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a table, a row a picture.")]
Maps = Annotated[
    Path | None, typer.Option("--maps", metavar="DIR", help="Write each anomaly map as 32-bit float TIFF.")
]
Overlays = Annotated[
    Path | None, typer.Option("--overlays", metavar="DIR", help="Write each picture with its regions marked.")
]
Null = Annotated[bool, typer.Option("--null", "-0", help="Paths on stdin end with a NUL, as find -print0 writes them.")]


def predict(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: ConfigFile,
    sources: Sources = None,
    watch: Watch = None,
    results: Results = None,
    set_: Overrides = [],  # noqa: B006
    csv: Table = None,
    maps: Maps = None,
    overlays: Overlays = None,
    fail_on_defect: FailOnDefect = False,
    null: Null = False,
    jsonl: Jsonl = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge pictures with a trained detector: score, verdict and regions of each, as fast as it goes."""
    refuse_both_forms(json=json, jsonl=jsonl)
    told = _Teller(jsonl=jsonl, silent=json or quiet, live=not quiet)

    def task() -> Callable[..., Any]:
        from cvad_cli.assembly.sources import Listing
        from cvad_cli.tasks.predict import PredictRequest, predict

        listing = Listing(0, b"\0" if null else b"\n")
        request = PredictRequest(tuple(sources or ()), watch, results, csv, maps, overlays, listing)
        enough = stack.enter_context(_stop_gently() if request.is_endless else contextlib.nullcontext())
        return partial(predict, request=request, tell=told.tell, enough=enough)

    with contextlib.ExitStack() as stack:
        stack.enter_context(told)
        (result,) = run_each([config], Options(tuple(set_), device, json, quiet, debug), task, told.show)
    if fail_on_defect and result.rejected:
        raise typer.Exit(1)


@contextlib.contextmanager
def _stop_gently() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, so that what was begun is finished; a second one ends the process as usual."""
    enough = threading.Event()
    former: dict[int, Any] = {}

    def stop(_number: int, _frame: FrameType | None) -> None:
        enough.set()
        for number, handler in former.items():
            signal.signal(number, handler)

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            former[number] = signal.signal(number, stop)
    try:
        yield enough
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@final
class _Teller:
    """Says each line on standard output, and how it goes on standard error where that is a terminal."""

    def __init__(self, *, jsonl: bool, silent: bool, live: bool) -> None:
        self._jsonl = jsonl
        self._silent = silent
        self._out = sys.stdout
        # Lines of JSON on the same terminal would be torn by a line that is redrawn.
        self._wants_live = live and sys.stderr.isatty() and not (jsonl and sys.stdout.isatty())
        self._stack = contextlib.ExitStack()
        self._tally: Tally | None = None
        self._live: Any = None

    def __enter__(self) -> _Teller:
        if self._jsonl:
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def tell(self, line: Line, tally: Tally) -> None:
        """Print the line, at once."""
        self._tally = tally
        if self._wants_live and self._live is None:
            self._live = self._stack.enter_context(self._new_live())
        if self._jsonl:
            from cvad_cli.files import json_line

            self._out.flush()
            self._out.buffer.write(json_line(line))
            self._out.buffer.flush()
        elif not self._silent:
            print(_plain_line(line))  # noqa: T201 - through the live line's console where there is one

    def show(self, summary: PredictSummary) -> None:
        """The figures of the whole run."""
        from cvad_cli.cli.render import show_prediction

        if self._live is not None:
            self._live.stop()
        show_prediction(summary)

    def _new_live(self) -> Any:
        from rich.console import Console
        from rich.live import Live

        return Live(
            console=Console(stderr=True),
            get_renderable=self._figures,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def _figures(self) -> Text:
        from rich.text import Text

        tally = self._tally
        if tally is None:
            return Text()
        spread = tally.times.whole.spread()
        return Text(
            f"{tally.judged} judged  {tally.recent_rate:.1f}/s  "
            f"{spread.p50_ms:.0f} / {spread.p95_ms:.0f} / {spread.p99_ms:.0f} ms (p50/p95/p99)  "
            f"{tally.rejected_share:.1%} rejected" + (f"  {tally.failed} unreadable" if tally.failed else ""),
            no_wrap=True,
            overflow="ellipsis",
        )


def _plain_line(line: Line) -> str:
    """A picture in one line; names that the terminal cannot show are escaped."""
    image = str(line["image"]).encode("utf-8", "backslashreplace").decode()
    if "error" in line:
        return f"unreadable          {image}"
    count = len(line["regions"])
    found = f"   {count} region{'s' * (count != 1)}" if count else ""
    return f"{'rejected' if line['rejected'] else 'passed':<8} {line['score']:10.4g}   {image}{found}"
