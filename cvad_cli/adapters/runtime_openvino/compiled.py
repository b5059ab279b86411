"""Networks compiled by OpenVINO for this machine's CPU: converted from torch once, then run without torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from cvad_cli.config.processors import computing_threads

if TYPE_CHECKING:
    from torch import nn

NETWORK_FILE: Final = "network.xml"
"""The description of a converted network; its weights lie beside it in network.bin."""

_PRECISION_NAMES: Final = {"BF16": "bf16", "FP16": "f16", "INT8": "int8"}


def quiet_openvino() -> Any:
    """OpenVINO without its telemetry, which reports every import and conversion over the network.

    Where the telemetry package cannot be imported, OpenVINO reports nothing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes the import fail
    import openvino

    return openvino


def processor_precisions() -> tuple[str, ...]:
    """The precisions that this CPU supports in hardware: f32, and those that OpenVINO reports."""
    found = quiet_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("f32", *(_PRECISION_NAMES[name] for name in sorted(found) if name in _PRECISION_NAMES))


def engine_identity() -> dict[str, str]:
    """What a compiled network depends on besides its weights. A cache entry with another identity is stale."""
    openvino = quiet_openvino()
    core = openvino.Core()
    return {
        "openvino": str(openvino.__version__),
        "processor": str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        "capabilities": " ".join(sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))),
    }


def convert(module: nn.Module, side: int, folder: Path) -> Path:
    """Write a torch module that takes uint8 (1, side, side, 3) as an OpenVINO model in `folder`."""
    import torch

    openvino = quiet_openvino()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = torch.zeros(1, side, side, 3, dtype=torch.uint8)
        model = openvino.convert_model(module.eval(), example_input=example, input=[tuple(example.shape)])
    return save(model, folder)


def save(model: Any, folder: Path) -> Path:
    """Write an OpenVINO model with its weights as they are."""
    path = folder / NETWORK_FILE
    quiet_openvino().save_model(model, path, compress_to_fp16=False)
    return path


@final
class CompiledNetwork:
    """A converted network on this CPU: one image with the lowest latency, several images on one stream per core.

    Separate requests of one image each use the cores better than a batch, which waits between its layers.
    """

    def __init__(self, path: Path, precision: str, *, max_at_once: int) -> None:
        """`precision` is f32, bf16, f16, or int8 for a quantised model. `max_at_once` bounds the streams."""
        openvino = quiet_openvino()
        self._core = openvino.Core()
        self._model = self._core.read_model(path)
        self._precision = _hint(precision)
        self._streams = max(1, min(computing_threads(), max_at_once))
        alone = self._compile({"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"})
        self._shape = tuple(alone.outputs[0].shape)[1:]
        self._alone = alone.create_infer_request()
        self._queue: Any = None

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 (h, w, 3) each to float32 (b, ...), in order."""
        answers = np.empty((len(images), *self._shape), np.float32)
        if len(images) == 1 or self._streams == 1:
            for index, image in enumerate(images):
                self._alone.infer({0: np.ascontiguousarray(image)[None]}, share_inputs=True)
                answers[index] = self._alone.get_output_tensor(0).data[0]
            return answers
        if self._queue is None:
            self._queue = self._open_queue()
        failures: list[BaseException] = []

        def keep(request: Any, index: int) -> None:
            try:
                answers[index] = request.get_output_tensor(0).data[0]
            except BaseException as error:  # noqa: BLE001  # raised below, in the calling thread
                failures.append(error)

        self._queue.set_callback(keep)
        for index, image in enumerate(images):
            self._queue.start_async({0: np.ascontiguousarray(image)[None]}, index)
        self._queue.wait_all()
        if failures:
            raise failures[0]
        return answers

    def _open_queue(self) -> Any:
        """Compile the network for throughput, with the first batch: single images do not need it."""
        many = self._compile({"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(self._streams)})
        return quiet_openvino().AsyncInferQueue(many, self._streams)

    def _compile(self, hints: dict[str, str]) -> Any:
        every = {"INFERENCE_PRECISION_HINT": self._precision, "INFERENCE_NUM_THREADS": computing_threads()}
        return self._core.compile_model(self._model, "CPU", {**every, **hints})


def _hint(precision: str) -> str:
    """A quantised model's remaining layers run in bf16 where the processor has it."""
    if precision != "int8":
        return precision
    return "bf16" if "bf16" in processor_precisions() else "f32"
