"""Runs a scoring module on one device, from NumPy images to predictions; on CUDA through captured graphs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import nn

from cvad_cli.records import Prediction

WARM_UP: Final = 3
"""Runs before a capture: libraries choose their kernels then. CUDA's documentation of graphs has this number."""

MAX_GRAPHS: Final = 4
"""Batch sizes that are captured, each with its own buffers. Further batch sizes run without a graph."""


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured run: fill `images`, replay, read `answers`."""

    graph: Any
    images: torch.Tensor
    answers: tuple[torch.Tensor, torch.Tensor]


@final
class Runner:
    """`module`, uint8 (b, h, w, 3) to scores (b,) and maps (b, h, w), placed on `device`.

    `coarse` allows a CUDA device to round the factors of float32 products to TF32.
    """

    def __init__(self, module: nn.Module, device: str, *, coarse: bool) -> None:
        self._module = module.to(device).eval()
        # Tensor cores read convolution weights channel by channel; images come in that order anyway.
        self._module = self._module.to(memory_format=torch.channels_last)
        self._device = device
        self._coarse = coarse
        self._cuda = device.startswith("cuda")
        self._capturable = True
        self._graphs: dict[int, _Graph] = {}
        self.last_split: Mapping[str, float] = {}

    def __call__(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """One prediction for each image, in order."""
        started = time.perf_counter()
        scores, maps = self._run(self._stacked(images))
        found = [Prediction(float(score), image) for score, image in zip(scores, maps, strict=True)]
        self.last_split = {"network": time.perf_counter() - started}
        return found

    def _run(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode(), _products(self._device, coarse=self._coarse):
            if not self._cuda:
                scores, maps = self._module(images.to(self._device))
                return scores.cpu().numpy(), maps.cpu().numpy()
            with torch.cuda.device(self._device):
                answers = self._replayed(images)
                fetched = [torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True) for answer in answers]
                for here, there in zip(fetched, answers, strict=True):
                    here.copy_(there, non_blocking=True)
                torch.cuda.current_stream().synchronize()
                return fetched[0].numpy(), fetched[1].numpy()

    def _replayed(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._graphs.get(len(images))
        if found is None and self._capturable and len(self._graphs) < MAX_GRAPHS:
            found = self._capture(images)
        if found is None:
            answers: tuple[torch.Tensor, torch.Tensor] = self._module(images.to(self._device, non_blocking=True))
            return answers
        found.images.copy_(images, non_blocking=True)
        found.graph.replay()
        return found.answers

    def _capture(self, images: torch.Tensor) -> _Graph | None:
        """Capture one run of this batch size, to replay it with one launch. None where the network prevents it."""
        inside = images.to(self._device)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._module(inside)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads use the device too: the describer's allocations must not break a capture.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                answers = self._module(inside)
        except RuntimeError:  # a layer waits for the device or copies to it: run without a graph
            torch.cuda.synchronize()
            self._capturable = False
            return None
        found = self._graphs[len(images)] = _Graph(graph, inside, answers)
        return found

    def _stacked(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """The images as one tensor (b, h, w, 3), in page-locked memory where a GPU fetches it."""
        batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=self._cuda)
        view = batch.numpy()
        for index, image in enumerate(images):
            view[index] = image
        return batch


@contextmanager
def _products(device: str, *, coarse: bool) -> Iterator[None]:
    """While the block runs, `coarse` lets a CUDA device round the factors of float32 matrix products to TF32."""
    if not device.startswith("cuda"):
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if coarse else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
