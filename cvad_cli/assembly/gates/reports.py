"""Reports of gates: JUnit XML for machines and GitHub-flavoured Markdown for reviewers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from cvad_cli.records import GateResult, Verdict

_FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, escaped or not."""
_MARKS: Final[dict[Verdict, str]] = {"passed": "✅", "failed": "❌", "cannot tell": "⚠️", "skipped": "➖"}


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """One run of a call: the results of its gates, or the error."""

    name: str
    data: str | None
    """The category; None where it is not known."""
    gates: tuple[GateResult, ...]
    seconds: float
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the run was evaluated and every gate passed."""
        return self.error is None and all(gate.passed for gate in self.gates)


def junit_xml(runs: Sequence[RunVerdict]) -> bytes:
    """A JUnit document: a testsuite for each run, in it a testcase for its evaluation and one for each gate.

    Follows the schema that Jenkins, GitLab and GitHub's readers share: `failure` for a gate that failed, `error` for a
    run that could not be evaluated, `skipped` for an optional gate without a figure; what a gate found, also where it
    passed or cannot tell, is in `system-out`.
    """
    suites = [_suite(run) for run in runs]
    root = ET.Element("testsuites", {"name": "cvad evaluate", **_totals(suites)})
    root.set("time", f"{sum(run.seconds for run in runs):.3f}")
    root.extend(suites)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def markdown(runs: Sequence[RunVerdict]) -> str:
    """A summary for a pull request: a line with the verdict, and for each run a table of its gates."""
    failed = [run for run in runs if not run.passed]
    gates = [gate for run in runs for gate in run.gates]
    counts = ", ".join(
        f"{count} {verdict}" for verdict in _MARKS if (count := sum(gate.verdict == verdict for gate in gates))
    )
    verdict = f"❌ {len(failed)} of {len(runs)} runs failed" if failed else f"✅ {len(runs)} of {len(runs)} runs passed"
    lines = [f"## cvad evaluate: {verdict}", "", f"Gates: {counts or 'none'}.", ""]
    for run in runs:
        lines += _section(run)
    return "\n".join(lines) + "\n"


def _section(run: RunVerdict) -> list[str]:
    data = f" ({_cell(run.data)})" if run.data else ""
    lines = [f"### {'✅' if run.passed else '❌'} {_cell(run.name)}{data}", ""]
    if run.error is not None:
        return [*lines, f"Not evaluated: {_cell(run.error)}", ""]
    if not run.gates:
        return [*lines, "No gate is for this run.", ""]
    lines += ["| | gate | value | what was found |", "| --- | --- | ---: | --- |"]
    for gate in run.gates:
        value = "-" if gate.value is None else f"{gate.value:.4f}"
        asked = gate.name if gate.bound in gate.name else f"{gate.name}: {gate.bound}"
        lines.append(f"| {_MARKS[gate.verdict]} | {_cell(asked)} | {value} | {_cell(_found(gate))} |")
    return [*lines, ""]


def _suite(run: RunVerdict) -> ET.Element:
    suite = ET.Element("testsuite", {"name": _legal(run.name)})
    kind = _legal(f"cvad.{run.name}")
    evaluated = ET.SubElement(suite, "testcase", {"classname": kind, "name": "evaluated"})
    evaluated.set("time", f"{run.seconds:.3f}")
    if run.error is not None:
        _tell(evaluated, "error", run.error)
    for gate in run.gates:
        case = ET.SubElement(suite, "testcase", {"classname": kind, "name": _legal(gate.name), "time": "0.000"})
        if not gate.passed:
            _tell(case, "failure", _found(gate), kind=f"{gate.metric} {gate.bound}")
        elif gate.verdict == "skipped":
            case.append(ET.Element("skipped", {"message": _legal(gate.reason)}))
        ET.SubElement(case, "system-out").text = _legal(_found(gate))
    for name, count in _counts(suite).items():
        suite.set(name, str(count))
    suite.set("time", f"{run.seconds:.3f}")
    return suite


def _found(gate: GateResult) -> str:
    return f"cannot tell: {gate.reason}" if gate.verdict == "cannot tell" else gate.reason


def _tell(case: ET.Element, tag: str, text: str, kind: str = "CvadError") -> None:
    ET.SubElement(case, tag, {"message": _legal(text), "type": _legal(kind)}).text = _legal(text)


def _counts(suite: ET.Element) -> dict[str, int]:
    tags = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {"tests": len(suite), **{name: len(suite.findall(f"testcase/{tag}")) for name, tag in tags.items()}}


def _totals(suites: Sequence[ET.Element]) -> dict[str, str]:
    names = ("tests", "failures", "errors", "skipped")
    return {name: str(sum(int(suite.get(name, "0")) for suite in suites)) for name in names}


def _legal(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)


def _cell(text: str) -> str:
    """Text that stays text in a markdown table: no cell, line, tag, link or emphasis of its own."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!@])", r"\\\1", " ".join(_legal(text).split()))
