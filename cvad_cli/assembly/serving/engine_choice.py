"""Chooses the engine and precision that serve a bundle, and verifies that they agree with the trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from cvad_cli.assembly.training.agreement_samples import AgreementSamples
from cvad_cli.config.schema import RuntimeConfig
from cvad_cli.core.agreement import Agreement
from cvad_cli.errors import ConfigError, ModelError
from cvad_cli.ports import Detector

Engine = Literal["openvino", "torch"]

TORCH_PRECISIONS: Final = {
    "cpu": ("f32",),
    "cuda": ("f16", "f32", "bf16"),
    "xpu": ("f16", "f32", "bf16"),
    "mps": ("f16", "f32"),
}
"""Precisions of torch on each kind of device. `auto` tries the first one first."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The engine that judges images, and its measured agreement with the trained model."""

    engine: Engine
    device: str
    precision: str
    """Of the networks: f32, bf16, f16 or int8. Distances and maps are always float32."""
    search: Mapping[str, Any] | None = None
    """How PatchCore's nearest patches are found, and the measured recall; None for other models."""
    agreement: Mapping[str, Any] | None = None
    """`core.agreement.Agreement` with the trained model in float32, as a mapping; None where it was not verified."""
    cache: Path | None = None
    """Folder that holds the compiled network and the search structure; None where they could not be stored."""
    note: str | None = None
    """A message for the user, such as why a precision was rejected."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Engine, device and precisions to try, before anything is opened."""

    engine: Engine
    device: str
    precisions: tuple[str, ...]
    """Tried in this order; the first one that agrees with the trained model serves."""
    chosen: bool
    """The user named the precision, so no other one may be used instead."""


def plan_serving(runtime: RuntimeConfig, device: str) -> Plan:
    """Resolve `runtime.engine` and `runtime.precision` on `device`. Raises ConfigError where they clash."""
    kind = device.partition(":")[0]
    engine = _engine(runtime, kind)
    possible = _openvino_precisions() if engine == "openvino" else TORCH_PRECISIONS[kind]
    if runtime.precision == "auto":
        first = "bf16" if engine == "openvino" and "bf16" in possible else possible[0]
        return Plan(engine, device, tuple(dict.fromkeys((first, "f32"))), chosen=False)
    if runtime.precision not in possible:
        where = f"{engine} on {'this processor' if engine == 'openvino' else device}"
        hint = "; int8 is OpenVINO's, on a CPU" if runtime.precision == "int8" else ""
        raise ConfigError(
            f"runtime.precision: {where} serves in {', '.join(sorted(possible))}, not in {runtime.precision}{hint}. "
            "Set it to one of these, or to auto"
        )
    return Plan(engine, device, (runtime.precision,), chosen=True)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A detector of one precision, and what is stored to open it again without building it."""

    detector: Detector
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready."""
    save: Callable[[Path], None] = lambda _folder: None
    """Writes data that is too large for the facts into a folder."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The candidate that serves, and its agreement."""

    candidate: Candidate
    precision: str
    agreement: Agreement | None = None
    """With the trained model in float32; None where it was not verified."""
    note: str | None = None

    def serving(self, plan: Plan) -> Serving:
        """The choice as it is reported."""
        return Serving(plan.engine, plan.device, self.precision, agreement=self.agreement_facts, note=self.note)

    @property
    def agreement_facts(self) -> dict[str, Any] | None:
        """The agreement, JSON-ready."""
        return None if self.agreement is None else asdict(self.agreement)


def choose_engine(plan: Plan, samples: AgreementSamples | None, build: Callable[[str], Candidate]) -> EngineChoice:
    """Build the plan's precisions in turn and choose the first one that agrees with the trained model.

    A bundle without agreement samples is served in float32, which needs no verification.
    Raises ModelError with the figures where the precision that the user named does not agree.
    """
    if samples is None:
        if plan.chosen and plan.precisions != ("f32",):
            raise ModelError(
                f"runtime.precision: {plan.precisions[0]} cannot be verified: this bundle was trained by an earlier "
                "cvad and holds no agreement samples. Run `cvad train` again, or set runtime.precision to f32"
            )
        note = (
            None if plan.chosen else "an earlier cvad trained this bundle; it would be served faster after `cvad train`"
        )
        return EngineChoice(build("f32"), "f32", note=note)
    rejected: list[str] = []
    for precision in plan.precisions:
        candidate = build(precision)
        found = samples.test(candidate.detector.predict)
        if found.holds:
            return EngineChoice(candidate, precision, found, "; ".join(rejected) or None)
        rejected.append(f"{precision} was rejected: {found}")
    remedy = "set runtime.precision to auto" if plan.chosen else "set runtime.engine to torch and device to cpu"
    raise ModelError(f"runtime: {plan.engine} does not agree with the trained model: {rejected[-1]}; {remedy}")


def serve_with_torch(
    plan: Plan, samples: AgreementSamples | None, build: Callable[[str], Detector]
) -> tuple[Detector, Serving]:
    """A detector on torch. float32 on a CPU is the reference itself and is not verified."""
    if plan.device == "cpu" and plan.precisions == ("f32",):
        choice = EngineChoice(Candidate(build("f32")), "f32")
    else:
        choice = choose_engine(plan, samples, lambda precision: Candidate(build(precision)))
    return choice.candidate.detector, choice.serving(plan)


def torch_alone(runtime: RuntimeConfig, device: str, model: str) -> Serving:
    """How any other anomalib model is served. Raises ConfigError where the config asks for anything else."""
    if runtime.engine == "openvino" or runtime.precision not in ("auto", "f32"):
        wanted = f"{runtime.engine}, {runtime.precision}"
        raise ConfigError(
            f"runtime: {model} is served by torch in f32 alone, not by {wanted}; set runtime.engine and "
            "runtime.precision to auto"
        )
    return Serving("torch", device, "f32")


def as_reference(runtime: RuntimeConfig) -> RuntimeConfig:
    """The settings that serve a bundle as it was trained: torch, float32."""
    return replace(runtime, engine="torch", precision="f32")


def _engine(runtime: RuntimeConfig, kind: str) -> Engine:
    if runtime.engine == "auto":
        return "openvino" if kind == "cpu" and find_spec("openvino") and find_spec("faiss") else "torch"
    if runtime.engine == "openvino" and kind != "cpu":
        raise ConfigError(
            f"runtime.engine: openvino serves on a CPU, but the device is {kind}; set device to cpu, or engine to auto"
        )
    return runtime.engine


def _openvino_precisions() -> tuple[str, ...]:
    from cvad_cli.adapters.runtime_openvino.compiled import processor_precisions

    return processor_precisions()
