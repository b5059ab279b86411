"""Opens a bundle as a detector that judges images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cvad_cli.adapters.runtime_torch import TorchEfficientAd, TorchPatchcore
from cvad_cli.adapters.storage.bundles import Bundle, read_bundle
from cvad_cli.adapters.storage.tensor_files import read_arrays
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.serving.bundle_networks import efficient_ad_model, patchcore_network
from cvad_cli.assembly.serving.engine_choice import Serving, plan_serving, serve_with_torch, torch_alone
from cvad_cli.assembly.training.agreement_samples import read_agreement_samples
from cvad_cli.config.load import to_plain
from cvad_cli.config.schema import ModelConfig, RunConfig
from cvad_cli.errors import BundleError
from cvad_cli.ports import Detector
from cvad_cli.records import Calibration

DECIDES_SCORES: Final = {
    "model": ("name", "backbone", "layers", "coreset_ratio", "num_neighbors", "options"),
    "data": ("image_size",),
    "classify": ("backbone",),
}
"""Settings that are part of a trained detector. Others, such as the data's location, may change after training."""


@dataclass(frozen=True, slots=True)
class OpenBundle:
    """A trained detector, ready to judge, with its calibration and its bundle."""

    bundle: Bundle
    detector: Detector
    calibration: Calibration
    device: str
    serving: Serving


def open_detector(settings: RunConfig, device: str, folder: Path | None = None) -> OpenBundle:
    """Open and verify the bundle of a config, and serve it as the `runtime` section says.

    `folder`: the bundle's folder where it is not the one that `cvad train` writes, such as a worker's copy.
    Raises BundleError where the bundle is missing, damaged or trained with other settings, ConfigError where engine,
    precision and device do not fit, ModelError where a precision does not agree with the trained model.
    """
    bundle = open_bundle(settings, folder)
    try:
        calibration = Calibration.saved(bundle.manifest["calibration"])
        detector, serving = _serve(bundle, settings, device)
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle.folder}: its manifest lacks {error} or has a wrong value there; run `cvad train` again"
        ) from error
    return OpenBundle(bundle, detector, calibration, device, serving)


def _serve(bundle: Bundle, settings: RunConfig, device: str) -> tuple[Detector, Serving]:
    kind = bundle.manifest["model"]["kind"]
    if kind not in _TORCH_BUILDERS:
        serving = torch_alone(settings.runtime, device, bundle.manifest["model"]["name"])
        return _open_generic(bundle, device), serving
    plan, samples = plan_serving(settings.runtime, device), read_agreement_samples(bundle)
    if plan.engine == "openvino":
        from cvad_cli.assembly.serving.openvino import serve_with_openvino

        return serve_with_openvino(bundle, settings, plan, samples)
    return serve_with_torch(plan, samples, partial(_TORCH_BUILDERS[kind], bundle, device))


def open_bundle(settings: RunConfig, folder: Path | None = None) -> Bundle:
    """The verified bundle of a config, or of `folder`, unopened. Raises BundleError like `open_detector`."""
    bundle = read_bundle(folder or bundle_folder(settings))
    _require_same_input(bundle, settings)
    return bundle


def _require_same_input(bundle: Bundle, settings: RunConfig) -> None:
    """Raise BundleError, naming the key, where a setting that decides the scores has changed since training."""
    trained, now = bundle.manifest.get("settings", {}), to_plain(settings)
    for section, keys in DECIDES_SCORES.items():
        for key in keys:
            before = trained.get(section, {}).get(key)
            if before != now[section][key]:
                raise BundleError(
                    f"{bundle.folder}: was trained with {section}.{key} {before}, the config says {now[section][key]}; "
                    "run `cvad train` again, or set it back"
                )


def _open_patchcore(bundle: Bundle, device: str, precision: str) -> Detector:
    return TorchPatchcore(
        patchcore_network(bundle),
        read_arrays(bundle.file("memory_bank"))["features"],
        num_neighbors=bundle.manifest["model"]["num_neighbors"],
        image_size=bundle.manifest["preprocessing"]["image_size"],
        device=device,
        precision=precision,
    )


def _open_generic(bundle: Bundle, device: str) -> Detector:
    from cvad_cli.adapters.anomalib_models import GenericModel

    stored: dict[str, Any] = bundle.manifest["model"]
    layers = tuple(stored["layers"]) if stored["layers"] else None
    config = ModelConfig(
        name=stored["name"], backbone=stored["backbone"], layers=layers, options=dict(stored["options"])
    )
    kwargs: dict[str, Any] = stored["backbone_kwargs"]
    side = bundle.manifest["preprocessing"]["image_size"]
    model = GenericModel.build(config, side, device, lambda name: (None, kwargs[name]) if name in kwargs else None)
    model.load(bundle.file("checkpoint"))
    return model


def _open_efficient_ad(bundle: Bundle, device: str, precision: str) -> Detector:
    side = bundle.manifest["preprocessing"]["image_size"]
    return TorchEfficientAd(efficient_ad_model(bundle), device, side, precision)


_TORCH_BUILDERS = {"patchcore": _open_patchcore, "efficient_ad": _open_efficient_ad}
