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
"""EfficientAD's layers that see the image: what they round goes through all others. In bf16 they cost a twentieth of
the time (docs/serving.md). Folding the normalisation into them makes inputs exact, and weights' rounding worse."""


def quantise(path: Path, images: Sequence[np.ndarray], folder: Path) -> Path:
    """Quantise a converted network; its ranges are those seen on `images`, uint8 (h, w, 3). Writes into `folder`.

    What follows the last layers of weights, differences, squares and means, stays as it is: it decides the scores and
    costs nothing. Activations keep their whole range: strange parts are those whose features are large, and NNCF's own
    choice, the mean of the images' largest values, would cut just these off. Raises ModelError where NNCF is not
    installed or cannot quantise the network.
    """
    openvino, nncf = quiet_openvino(), _nncf()
    model = openvino.Core().read_model(path)
    whole_range = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    )
    exact = nncf.IgnoredScope(types=["Subtract", "Power", "ReduceMean"], patterns=[FIRST_LAYERS], validate=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars are not ours
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
