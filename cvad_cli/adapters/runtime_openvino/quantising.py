"""Post-training quantisation to int8 by NNCF, from images alone: no label and no training."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from cvad_cli.adapters.runtime_openvino.compiled import quiet_openvino, save
from cvad_cli.errors import ModelError

FIRST_LAYERS: Final = r".*\.(student|teacher)\.conv1/.*"
"""EfficientAD's first layers: their rounding errors pass through all other layers. In bf16 they take 5 % of the time
(docs/serving.md). Folding the normalisation into them makes their inputs exact, but rounds their weights worse."""


def quantise(path: Path, images: Sequence[np.ndarray], folder: Path) -> Path:
    """Quantise a converted network with the ranges measured on `images`, uint8 (h, w, 3), and write it into `folder`.

    The operations after the last layers with weights (differences, squares and means) are not quantised: they decide
    the scores and cost nothing. Activations keep their whole range: anomalous parts have large features, which NNCF's
    default range, the mean of the images' largest values, would cut off. Raises ModelError where NNCF is not installed
    or cannot quantise the network.
    """
    openvino, nncf = quiet_openvino(), _nncf()
    model = openvino.Core().read_model(path)
    whole_range = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    )
    exact = nncf.IgnoredScope(types=["Subtract", "Power", "ReduceMean"], patterns=[FIRST_LAYERS], validate=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hides NNCF's progress bars
            quantised = nncf.quantize(
                model,
                nncf.Dataset([image[None] for image in images]),
                subset_size=len(images),
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=exact,
                advanced_parameters=whole_range,
            )
    except (RuntimeError, nncf.errors.ValidationError, nncf.errors.InternalError) as error:
        raise ModelError(
            f"{path}: NNCF cannot quantise this network: {error}; set runtime.precision to auto"
        ) from error
    return save(quantised, folder)


def _nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise ModelError(
            "runtime.precision: int8 needs NNCF, which is not installed: pip install 'cvad[int8]'"
        ) from error
    nncf.set_log_level(logging.ERROR)
    return nncf
