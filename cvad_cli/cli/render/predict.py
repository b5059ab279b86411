"""What `cvad predict` prints: one line per image, a live line on a terminal, and a summary at the end."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, final

from cvad_cli.cli.render.tables import print_parts

if TYPE_CHECKING:
    from rich.text import Text

    from cvad_cli.assembly.prediction.results import Tally
    from cvad_cli.tasks.predict import Line, PredictSummary


@final
class PredictionLines:
    """Prints each result on standard output, and the progress on standard error if that is a terminal."""

    def __init__(self, *, jsonl: bool, silent: bool, live: bool) -> None:
        self._jsonl = jsonl
        self._silent = silent
        self._out = sys.stdout
        # A line that is redrawn would break lines of JSON on the same terminal.
        self._wants_live = live and sys.stderr.isatty() and not (jsonl and sys.stdout.isatty())
        self._stack = contextlib.ExitStack()
        self._tally: Tally | None = None
        self._live: Any = None

    def __enter__(self) -> PredictionLines:
        if self._jsonl:
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def print_result(self, line: Line, tally: Tally) -> None:
        """Print the line immediately."""
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
        """Print the figures of the whole run."""
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
        latency = tally.times.whole.summary()
        return Text(
            f"{tally.judged} judged  {tally.recent_rate:.1f}/s  "
            f"{latency.p50_ms:.0f} / {latency.p95_ms:.0f} / {latency.p99_ms:.0f} ms (p50/p95/p99)  "
            f"{tally.rejected_share:.1%} rejected" + (f"  {tally.failed} unreadable" if tally.failed else ""),
            no_wrap=True,
            overflow="ellipsis",
        )


def _plain_line(line: Line) -> str:
    """An image on one line; characters that the terminal cannot show are escaped."""
    image = str(line["image"]).encode("utf-8", "backslashreplace").decode()
    if "error" in line:
        return f"unreadable          {image}"
    count = len(line["regions"])
    found = f"   {count} region{'s' * (count != 1)}" if count else ""
    return f"{'rejected' if line['rejected'] else 'passed':<8} {line['score']:10.4g}   {image}{found}"


def show_prediction(summary: PredictSummary) -> None:
    """Print the counts, the speed, and the latency of an image by stage."""
    from rich.table import Table

    share = f" ({summary.rejected / summary.images:.1%})" if summary.images else ""
    unreadable = f", {summary.unreadable} unreadable" if summary.unreadable else ""
    print_parts(
        f"{summary.name}: {summary.images} images in {summary.seconds:.1f} s, {summary.images_per_second:.1f} per "
        f"second; {summary.rejected} rejected{share}{unreadable}"
    )
    if summary.images:
        table = Table(title="latency per image, ms", title_justify="left")
        for heading in ("", "mean", "p50", "p95", "p99"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, latency in (*summary.stages.items(), ("whole", summary.latency)):
            figures = (latency.mean_ms, latency.p50_ms, latency.p95_ms, latency.p99_ms)
            table.add_row(name, *(f"{value:.1f}" for value in figures))
        print_parts(table)
        print_parts(f"the means of the stages add up to {summary.explained:.1%} of the whole")
    if summary.results is not None:
        print_parts(f"results: {summary.results}")
