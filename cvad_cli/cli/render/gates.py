"""Prints the verdicts of gates for people."""

from __future__ import annotations

from cvad_cli.cli.render.tables import print_parts
from cvad_cli.cli.render.train_evaluate import show_evaluation
from cvad_cli.records import EvaluationSummary, GateResult


def show_evaluation_and_gates(summary: EvaluationSummary) -> None:
    """Print the figures, then one line per gate and the number of failures."""
    show_evaluation(summary)
    if not summary.gates:
        return
    marks = {"passed": "pass", "failed": "FAIL", "cannot tell": "pass?", "skipped": "skip"}
    lines = [f"{marks[gate.verdict] if gate.passed else 'FAIL':<6}{gate_line(gate)}" for gate in summary.gates]
    failed = sum(not gate.passed for gate in summary.gates)
    print_parts(*lines, f"{failed or 'None'} of {len(summary.gates)} gates failed.")


def gate_line(gate: GateResult) -> str:
    """A gate and the reason for its verdict, on one line."""
    verdict = "cannot tell: " if gate.verdict == "cannot tell" else ""
    asked = gate.name if gate.bound in gate.name else f"{gate.name} ({gate.bound})"
    return f"{asked}: {verdict}{gate.reason}"
