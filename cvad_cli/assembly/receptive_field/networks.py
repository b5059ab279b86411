"""From a config to the networks to analyse, with the best weights available."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from cvad_cli.adapters.anomalib_models import new_patchcore, require_known
from cvad_cli.adapters.backbones import RANDOM_WEIGHTS, Backbone, BackboneSpec, whole_network
from cvad_cli.adapters.pdn import build_pdn
from cvad_cli.adapters.receptive_field.layer_graph import patch_embedding, pooled
from cvad_cli.adapters.runtime_torch import TorchEfficientAd, TorchPatchcore
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.serving.engine_choice import as_reference
from cvad_cli.assembly.serving.open_bundle import open_detector
from cvad_cli.assembly.training.efficient_ad_options import EfficientAdOptions
from cvad_cli.assembly.training.pdn_teachers import PDN_BACKBONES, patchcore_backbone, patchcore_layers
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import BundleError, ConfigError, ModelError
from cvad_cli.ports import Reporter

if TYPE_CHECKING:
    from cvad_cli.adapters.runtime_torch.types import Network as Module

TRAINED: Final = "the trained bundle of this config"


@dataclass(frozen=True, slots=True)
class Network:
    """One network of a detector, ready for analysis."""

    name: str
    """Its role in the detector, such as 'teacher'."""
    module: Module
    weights: str
    """Where its weights came from, in words."""
    normalised: bool
    """Whether its input is RGB normalised by ImageNet's statistics; otherwise it takes RGB in 0..1."""
    wants_size: bool = False
    """Whether `forward` takes the image's size after the image, as in anomalib's autoencoder."""
    stages: tuple[str, ...] = ()
    """Module names of the layers that the config selects."""

    def arguments(self, size: tuple[int, int]) -> tuple[Any, ...]:
        """The arguments after the image in `forward`."""
        return (size,) if self.wants_size else ()


@dataclass(frozen=True, slots=True)
class AnalysedNetworks:
    """The networks of one config. The cells of the first make the anomaly map."""

    networks: tuple[Network, ...]
    candidates: Module | None = None
    """The same backbone with all layers as outputs and 3x3 pooling: read for advice, never run."""
    candidate_names: tuple[str, ...] = field(default=())


def find_networks(settings: RunConfig, device: str, reporter: Reporter) -> AnalysedNetworks:
    """The networks that the config names, in eval mode on `device`.

    The derived field depends on the architecture only; the weights decide the gradients. The weights come from the
    config's trained bundle, else from the usual pretrained sources, else at random from the config's seed, with a
    warning. Raises ModelError if the model is neither PatchCore nor EfficientAD, or cannot be built.
    """
    require_known(settings.model.name)
    if settings.model.name not in _FINDERS:
        raise ModelError(
            f"model.name: analyze-rf reads {' and '.join(_FINDERS)}, not {settings.model.name}: its cells are not "
            "those of one map. For a timm backbone, name it in a patchcore config with the same layers"
        )
    return _FINDERS[settings.model.name](settings, device, reporter)


def _trained(settings: RunConfig, device: str, reporter: Reporter) -> Module | None:
    """The network of the config's bundle; None if there is none, or, with a warning, if it cannot be used."""
    if not bundle_folder(settings).is_dir():
        return None
    try:
        as_trained = replace(settings, runtime=as_reference(settings.runtime))
        detector = open_detector(as_trained, device).detector
    except (BundleError, ModelError) as error:
        reporter.warn(f"{error}. The trained weights are not used here")
        return None
    if isinstance(detector, (TorchPatchcore, TorchEfficientAd)):
        network: Module = detector.network
        return network
    reporter.warn(f"{bundle_folder(settings)}: holds a {type(detector).__name__}, whose weights are not used here")
    return None


def _patchcore(settings: RunConfig, device: str, reporter: Reporter) -> AnalysedNetworks:
    config = settings.model
    if config.options:
        raise ConfigError(f"model.options: patchcore takes none; remove {', '.join(config.options)}")
    name, layers = patchcore_layers(config)
    network, origin, kwargs = _trained(settings, device, reporter), TRAINED, {}
    if network is None:
        backbone = _backbone(settings, reporter)
        network, origin, kwargs = backbone.network, backbone.weights, dict(backbone.spec.kwargs)
    embedding = patch_embedding(new_patchcore(network, name, layers, config.num_neighbors).model).to(device)
    main = Network("patch features", embedding, origin, normalised=True, stages=tuple(layers))
    if name in PDN_BACKBONES:
        return AnalysedNetworks((main,))
    candidates, names = whole_network(BackboneSpec(name, tuple(layers), kwargs))
    return AnalysedNetworks((main,), pooled(candidates), names)


def _backbone(settings: RunConfig, reporter: Reporter) -> Backbone:
    model, seed = settings.model, settings.seed
    try:
        return patchcore_backbone(model, seed=seed)
    except ModelError as error:
        if model.weights is not None:
            raise
        random = patchcore_backbone(replace(model, weights=RANDOM_WEIGHTS), seed=seed)  # a wrong name ends here
        reporter.warn(f"{error}\nThe effective field is that of random weights: only a guide to its shape")
        return random


def _efficient_ad(settings: RunConfig, device: str, reporter: Reporter) -> AnalysedNetworks:
    inner: Any = _trained(settings, device, reporter)
    origins = dict.fromkeys(("teacher", "student", "autoencoder"), TRAINED)
    if inner is None:
        inner, origins = _untrained(settings)
    modules = {"teacher": inner.teacher, "student": inner.student, "autoencoder": inner.ae}
    return AnalysedNetworks(
        tuple(
            Network(name, module.to(device).eval(), origins[name], normalised=False, wants_size=name == "autoencoder")
            for name, module in modules.items()
        )
    )


def _untrained(settings: RunConfig) -> tuple[Any, dict[str, str]]:
    """EfficientAD with the teacher that training would use, and the origin of each network's weights."""
    from cvad_cli.adapters.anomalib_models.efficient_ad import new_model
    from cvad_cli.adapters.anomalib_models.seeding import seeded

    options = EfficientAdOptions.of(settings)
    teacher = options.teacher(settings)
    with seeded(settings.seed, "cpu"):  # anomalib's constructors draw from torch's global generator
        model = new_model(options.size, teacher.channels, padding=options.padding, pad_maps=options.pad_maps)
    model.teacher.load_state_dict(teacher.network.state_dict())
    student = build_pdn(options.size, 2 * teacher.channels, padding=options.padding, seed=settings.seed + 1)
    model.student.load_state_dict(student.state_dict())
    random = f"random, seed {settings.seed}: not trained yet"
    return model, {"teacher": teacher.origin, "student": random, "autoencoder": random}


_FINDERS: Final = {"patchcore": _patchcore, "efficient_ad": _efficient_ad}
