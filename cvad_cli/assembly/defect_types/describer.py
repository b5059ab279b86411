"""The describer turns a region into a vector, by a second, closer look. It is fitted with the detector, in its bundle.

It is independent of the detector: it consists of a frozen backbone with all its stages, and a model of the features of
good parts. `core/descriptors.py` has the mathematics.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from cvad_cli.adapters.backbones import (
    RANDOM_WEIGHTS,
    Backbone,
    BackboneSpec,
    build_network,
    feature_indices,
    layers_with_strides,
    load_backbone,
)
from cvad_cli.adapters.images import read_image, resize_image
from cvad_cli.adapters.prefetch import batched, prefetch
from cvad_cli.adapters.runtime_openvino.frozen_networks import FeatureFunction, feature_function
from cvad_cli.adapters.storage.bundles import Bundle
from cvad_cli.adapters.storage.tensor_files import read_header, read_tensors, write_tensors
from cvad_cli.assembly.training.pdn_teachers import PDN_BACKBONES
from cvad_cli.config.schema import PATCHCORE_BACKBONE, DataConfig, RunConfig
from cvad_cli.core.coreset import k_center_greedy
from cvad_cli.core.descriptors import (
    CELLS,
    DESCRIPTOR_VERSION,
    ORIENTATIONS,
    SURFACE_SIZE,
    VIEW_PX,
    Cells,
    NormalModel,
    ViewBox,
    describe,
    key_of,
    normal_model,
    orient,
    own_cells,
    pixel_statistics,
    view_box,
    view_side,
)
from cvad_cli.core.regions import Region
from cvad_cli.errors import BundleError, ModelError
from cvad_cli.ports import Reporter
from cvad_cli.records import ImageRecord

ROLE: Final = "describer"
"""The role of its file in the bundle."""

STRIDES: Final = (4, 8, 16, 32)
"""Strides of the stages; `core.descriptors` searches the nearest normal cell on the middle two."""

FEWEST_STAGES: Final = 3

VIEWS_PER_LOCATION: Final = 4
"""Views of one location in one image, in different orientations: more of them add little."""

CELLS_OF_A_VIEW: Final = 256
"""Cells taken of the 1024 of a view, at random: neighbouring cells look alike."""


@dataclass(frozen=True, slots=True)
class FitLimits:
    """Bounds on the work and the memory of fitting."""

    views: int = 256
    """Views of good images."""
    cells: int = 2000
    """Representative normal cells that are kept."""
    feature_bytes: int = 1 << 28
    """Bytes of features of good cells that are held."""


DEFAULT_LIMITS: Final = FitLimits()


@final
class Describer:
    """Describes regions of an image with a frozen backbone. Threads may share it."""

    def __init__(self, look: FeatureFunction, normal: NormalModel, device: str) -> None:
        self._look = look
        self._device = device
        self._normal = normal
        self._one_at_a_time = threading.Lock()

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._normal.size

    def describe(self, image: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
        """float32 (n, 8, d): a vector of length 1 for each orientation of each region of a uint8 RGB (h, w, 3)."""
        found = np.empty((len(regions), ORIENTATIONS, self.dimension), np.float32)
        size = (image.shape[0], image.shape[1])
        for index, region in enumerate(regions):
            box = view_box(region.centre, size)
            view, own = _view(image, box), own_cells(region.mask, size, box)
            oriented = [orient(view, number) for number in range(ORIENTATIONS)]
            with self._one_at_a_time:  # a compiled network has one set of buffers, and uses every core already
                stages = look_at(oriented, self._look, self._device)
            pixels = _pixels(view).reshape(
                CELLS, CELLS, SURFACE_SIZE
            )  # a turn moves the statistics without changing them
            for number in range(ORIENTATIONS):
                found[index, number] = describe(
                    [stage[number] for stage in stages],
                    orient(pixels, number).reshape(CELLS * CELLS, SURFACE_SIZE),
                    orient(own, number).ravel(),
                    self._normal,
                )
        return found


@dataclass(frozen=True, slots=True)
class FittedDescriber:
    """A describer before it is written to a bundle."""

    backbone: Backbone
    normal: NormalModel

    @property
    def summary(self) -> str:
        """Backbone and sizes, for people."""
        return f"{self.backbone.spec.name}, {len(self.normal.stages[0])} normal cells, {self.normal.size} values"

    def save(self, path: Path) -> None:
        """Write the network and the normal model as safetensors, with a header that describes them."""
        state = {name: tensor.cpu().numpy() for name, tensor in self.backbone.network.state_dict().items()}
        tensors = {f"network.{name}": np.ascontiguousarray(values) for name, values in state.items()}
        normal = self.normal
        for number, (stage, white) in enumerate(zip(normal.stages, normal.whitening, strict=True)):
            tensors |= {f"normal.{number}": stage, f"whitening.{number}": white}
        tensors |= {"surface.mean": normal.surface_mean, "surface.whitening": normal.surface_whitening}
        spec = self.backbone.spec
        header = {
            "version": DESCRIPTOR_VERSION,
            "backbone": spec.name,
            "layers": spec.layers,
            "kwargs": dict(spec.kwargs),
            "weights": self.backbone.weights,
            "cell_threshold": normal.cell_threshold,
        }
        write_tensors(path, tensors, {ROLE: json.dumps(header, sort_keys=True)})

    @property
    def writers(self) -> dict[str, tuple[str, Callable[[Path], None]]]:
        """The writers for `write_bundle`."""
        return {ROLE: (".safetensors", self.save)}


def fit_describer(
    settings: RunConfig,
    records: Sequence[ImageRecord],
    device: str,
    reporter: Reporter,
    *,
    limits: FitLimits = DEFAULT_LIMITS,
) -> FittedDescriber | None:
    """Learn the features of good parts from two or more good images.

    Returns None, with a warning that names the remedy, if the backbone is not available and the config does not name
    one: such a bundle detects defects, but does not classify them.
    """
    try:
        backbone = _backbone_for(settings)
    except ModelError as error:
        if settings.classify.backbone is not None:
            raise
        reporter.warn(f"this bundle will detect defects but not name their types (set classify.backbone): {error}")
        return None
    look = feature_function(backbone.network, VIEW_PX, device)
    rng = np.random.default_rng([settings.seed, 3])
    cells = _good_cells(partial(look_at, look=look, device=device), records, settings, rng, reporter, limits)
    kept = min(limits.cells, max(2, len(cells.images) // 4))
    with reporter.stage("Choosing normal cells", kept) as advance:
        rows = k_center_greedy(key_of(cells.stages), kept, rng=rng, advance=advance).rows
        normal = normal_model(cells.take(rows), cells)
    return FittedDescriber(backbone, normal)


def open_describer(bundle: Bundle, device: str) -> Describer:
    """The describer of a bundle. Raises BundleError, with the remedy, if it has none or one of another version."""
    remedy = "run `cvad train` with the same config again"
    if ROLE not in bundle.manifest["files"]:
        raise BundleError(
            f"{bundle.folder}: has no describer, so it cannot name defect types: it was trained by an earlier cvad, or "
            f"where no weights for classify.backbone were found; {remedy}"
        )
    path = bundle.file(ROLE)
    try:
        header: dict[str, Any] = json.loads(read_header(path)[ROLE])
        if header["version"] != DESCRIPTOR_VERSION:
            made = f"version {header['version']}, this cvad makes version {DESCRIPTOR_VERSION}"
            raise BundleError(f"{path}: its descriptors are {made}; {remedy}")
        tensors = read_tensors(path)
        spec = BackboneSpec(header["backbone"], tuple(header["layers"]), header["kwargs"])
        network = build_network(spec)
        prefix = "network."
        network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        count = range(len(spec.layers))
        normal = NormalModel(
            stages=tuple(tensors[f"normal.{number}"].numpy() for number in count),
            whitening=tuple(tensors[f"whitening.{number}"].numpy() for number in count),
            surface_mean=tensors["surface.mean"].numpy(),
            surface_whitening=tensors["surface.whitening"].numpy(),
            cell_threshold=float(header["cell_threshold"]),
        )
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BundleError(f"{path}: is not a describer that this cvad can read ({error}); {remedy}") from error
    return Describer(feature_function(network, VIEW_PX, device), normal, device)


def look_at(views: Sequence[np.ndarray], look: FeatureFunction, device: str) -> list[np.ndarray]:
    """Features of views, uint8 RGB (256, 256, 3): one array (b, 1024, d_s) per stage, 3x3 means on 32 x 32 cells."""
    from cvad_cli.adapters.runtime_torch.frozen_features import cell_features

    return cell_features(views, look, device, CELLS)


def _backbone_for(settings: RunConfig) -> Backbone:
    """The detector's own backbone for PatchCore, else that of `classify.backbone`, with all its stages."""
    own = settings.model.backbone or PATCHCORE_BACKBONE if settings.model.name == "patchcore" else None
    own = None if own in PDN_BACKBONES else own  # one stage: too few
    name = settings.classify.backbone or own or PATCHCORE_BACKBONE
    feature_indices(BackboneSpec(name, ()))  # raises a clear message if timm has no such feature network
    layers = layers_with_strides(name, STRIDES)
    if len(layers) < FEWEST_STAGES:
        raise ModelError(
            f"backbone {name!r} has {len(layers)} stages of stride 4 to 32, a describer needs {FEWEST_STAGES}"
        )
    weights = settings.model.weights if name == own or settings.model.weights == RANDOM_WEIGHTS else None
    return load_backbone(name, layers, weights, seed=settings.seed)


def _good_cells(
    look: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    records: Sequence[ImageRecord],
    settings: RunConfig,
    rng: np.random.Generator,
    reporter: Reporter,
    limits: FitLimits,
) -> Cells:
    """A sample of cells from random views of good images."""
    chosen = rng.permutation(len(records))[: limits.views]
    turns = -(-limits.views // len(chosen))
    views_of_all = _random_views([records[index] for index in chosen], turns, settings.data, rng)
    parts: list[Cells] = []
    done = 0
    with reporter.stage("Computing features of good parts", len(chosen)) as advance:
        for views in batched(views_of_all, ORIENTATIONS):
            stages = look([view for _, view in views])
            width = sum(stage.shape[-1] for stage in stages) + SURFACE_SIZE
            per_view = int(np.clip(limits.feature_bytes / (4 * width * len(chosen) * turns), 1, CELLS_OF_A_VIEW))
            for index, (number, view) in enumerate(views):
                cells = rng.permutation(CELLS**2)[:per_view]
                kept = tuple(stage[index, cells] for stage in stages)
                parts.append(Cells(kept, _pixels(view)[cells], np.full(per_view, number)))
            advance(views[-1][0] + 1 - done)
            done = views[-1][0] + 1
    return Cells(
        tuple(np.concatenate(stage) for stage in zip(*(part.stages for part in parts), strict=True)),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.images for part in parts]),
    )


def _random_views(
    records: Sequence[ImageRecord], turns: int, data: DataConfig, rng: np.random.Generator
) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the image, view): up to `turns` views of each image, at random locations and orientations."""

    def read(record: ImageRecord) -> np.ndarray:
        return read_image(record.path, max_megapixels=data.max_megapixels)

    for number, image in enumerate(prefetch(records, read, ahead=4)):
        size = (image.shape[0], image.shape[1])
        side = view_side(size)
        locations = math.ceil(size[0] * size[1] / side**2)
        for _ in range(min(turns, VIEWS_PER_LOCATION * locations)):
            top, left = (int(rng.integers(0, length - side + 1)) for length in size)
            view = _view(image, ViewBox(top, left, side))
            yield number, orient(view, int(rng.integers(ORIENTATIONS)))


def _view(image: np.ndarray, box: ViewBox) -> np.ndarray:
    """uint8 RGB (256, 256, 3): the square of the image in `box`."""
    square = image[box.top : box.top + box.side, box.left : box.left + box.side]
    return resize_image(square, (VIEW_PX, VIEW_PX))


def _pixels(view: np.ndarray) -> np.ndarray:
    """(1024, 7) pixel statistics of a view's cells."""
    return pixel_statistics(view.astype(np.float32) / 255).reshape(CELLS * CELLS, SURFACE_SIZE)
