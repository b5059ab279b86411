"""The modules that the serving engines run: a detector's networks from uint8 images, including normalisation.

torch runs these modules, OpenVINO converts them and CUDA captures them as graphs. So they do not branch on values and
create no tensors while they run. This file is imported only where torch is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast, final

import numpy as np
import torch
from torch import nn

from cvad_cli.adapters.runtime_torch import IMAGENET_MEAN, IMAGENET_STD
from cvad_cli.adapters.runtime_torch.pdn_features import describe
from cvad_cli.adapters.runtime_torch.pooling import joined, local_means
from cvad_cli.core.maps import Enlargement, MapScale
from cvad_cli.core.scoring import reweighted
from cvad_cli.errors import BundleError

MAX_DISTANCES: Final = {"cpu": 1 << 25, "cuda": 1 << 27}
"""The largest number of distances held at once: 128 MiB of float32 on a CPU, 512 MiB on a GPU."""


class _FromImages(nn.Module):
    """Normalises uint8 RGB (b, h, w, 3) by ImageNet's statistics into (b, 3, h, w) of the networks' precision."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise the images. A permuted NHWC image is channels_last already, so only the conversion copies it."""
        scaled = (images.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std
        return scaled if self.dtype == torch.float32 else scaled.to(self.dtype)


@final
class PatchEmbedding(_FromImages):
    """Locally aware patch features (PatchCore section 3.1): 3x3 averages of each layer, on the first layer's grid."""

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.network = network.eval().to(dtype)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, h, w, 3) to patches (b, p, d), float32, row by row over the grid."""
        return joined(local_means(self.network(self.normalised(images)))).flatten(2).transpose(1, 2)


@final
class PatchcoreScores(nn.Module):
    """PatchCore from images to image scores and maps, every image of a batch at once."""

    bank: torch.Tensor
    offset: torch.Tensor
    products: torch.Tensor
    squares: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(
        self, embedding: PatchEmbedding, bank: torch.Tensor, num_neighbors: int, enlargement: Enlargement
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self._neighbors = min(num_neighbors, len(bank))
        offset = bank.mean(0)
        centred = bank - offset  # distances do not change, and their expansion loses fewer digits
        for name, values in {
            "bank": bank,
            "offset": offset,
            "products": -2.0 * centred.T,
            "squares": (centred * centred).sum(1),
            "rows": torch.from_numpy(enlargement.rows.copy()),
            "columns": torch.from_numpy(enlargement.columns.copy()),
        }.items():
            self.register_buffer(name, values.float().contiguous(), persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (b, h, w, 3) to scores (b,) and maps (b, h, w)."""
        patches = self.embedding(images)
        distances, nearest = self.nearest(patches.flatten(0, 1))
        distances, nearest = distances.view(len(patches), -1), nearest.view(len(patches), -1)
        scores, highest = distances.max(dim=1)
        if self._neighbors > 1:
            indices = highest[:, None, None].expand(-1, 1, patches.shape[-1])
            chosen = patches.gather(1, indices)[:, 0]
            support = self.support(nearest.gather(1, highest[:, None])[:, 0])
            scores = cast(torch.Tensor, reweighted(scores, chosen, support))
        coarse = distances.view(len(patches), self.rows.shape[1], self.columns.shape[1])
        return scores, self.rows @ coarse @ self.columns.T

    def nearest(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance to, and row of, the nearest bank member: (n, d) -> (n,), (n,).

        The matrix product only selects the member. Its distance is then computed from the difference, so a coarser
        product (TF32 on a GPU) hardly changes the result.
        """
        step = max(1, MAX_DISTANCES["cpu" if patches.device.type == "cpu" else "cuda"] // len(self.bank))
        chosen = [
            torch.addmm(self.squares, chunk - self.offset, self.products).argmin(dim=1)
            for chunk in torch.split(patches, step)
        ]
        rows = torch.cat(chosen)
        return torch.linalg.vector_norm(patches - self.bank[rows], dim=-1), rows

    def support(self, rows: torch.Tensor) -> torch.Tensor:
        """The bank's `num_neighbors` members nearest to those of `rows` (b,), including themselves: (b, k, d)."""
        around = torch.addmm(self.squares, self.bank[rows] - self.offset, self.products)
        return self.bank[around.topk(self._neighbors, dim=1, largest=False, sorted=False).indices]


@final
class StudentTeacherMaps(_FromImages):
    """EfficientAD's two maps before they are enlarged, from anomalib's torch model.

    The image is normalised once instead of in each network, and differences are computed in float32 for any precision
    of the networks.
    """

    teacher_mean: torch.Tensor
    teacher_std: torch.Tensor

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.teacher, self.student, self.ae = (
            part.eval().to(dtype) for part in (model.teacher, model.student, model.ae)
        )
        self._channels = int(model.teacher_out_channels)
        mean, std = (model.mean_std[name].detach().float() for name in ("mean", "std"))
        measured = bool(model.is_set(model.mean_std))  # without statistics anomalib does not normalise the teacher
        self.register_buffer("teacher_mean", mean if measured else torch.zeros_like(mean), persistent=False)
        self.register_buffer("teacher_std", std if measured else torch.ones_like(std), persistent=False)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the maps of an image of `image_size`."""
        with torch.inference_mode():
            coarse = self(torch.zeros(1, *image_size, 3, dtype=torch.uint8, device=self.mean.device))
        return int(coarse.shape[-2]), int(coarse.shape[-1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, h, w, 3) to mean squared distances (b, 2, r, c): student to teacher, student to autoencoder."""
        inside = self.normalised(images)
        teacher_features = (describe(self.teacher, inside).float() - self.teacher_mean) / self.teacher_std
        student_features = describe(self.student, inside).float()
        autoencoder_features = self.ae.decoder(self.ae.encoder(inside), inside.shape[-2:]).float()
        to_teacher = teacher_features - student_features[:, : self._channels]
        to_rebuilt = autoencoder_features - student_features[:, self._channels :]
        return torch.stack([(to_teacher**2).mean(dim=1), (to_rebuilt**2).mean(dim=1)], dim=1)


@final
class EfficientAdScores(nn.Module):
    """EfficientAD from images to image scores and maps."""

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, maps: StudentTeacherMaps, scale: MapScale, enlargement: Enlargement) -> None:
        super().__init__()
        self.maps = maps
        self._scale = scale
        self.register_buffer("rows", torch.from_numpy(enlargement.rows.copy()), persistent=False)
        self.register_buffer("columns", torch.from_numpy(enlargement.columns.copy()), persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (b, h, w, 3) to scores (b,) and maps (b, h, w)."""
        coarse = self.maps(images)
        scale = self._scale
        together = scale.student * coarse[:, 0] + scale.autoencoder * coarse[:, 1]
        enlarged = self.rows @ together @ self.columns.T + scale.offset
        return enlarged.amax(dim=(-2, -1)), enlarged


def answers(module: nn.Module, images: Sequence[np.ndarray]) -> np.ndarray:
    """The outputs (n, ...) of a module on the CPU for uint8 images (h, w, 3), one by one."""
    with torch.inference_mode():
        return np.concatenate([module(torch.from_numpy(image.copy())[None]).numpy() for image in images])


def torch_dtype(precision: str) -> torch.dtype:
    """torch's type of a `runtime.precision` other than auto and int8."""
    return {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[precision]


def border_cells(model: Any) -> int:
    """Cells of zeros that anomalib puts around the maps of its EfficientAD before they are enlarged."""
    return 4 if model.pad_maps else 0


def map_scale(model: Any) -> MapScale:
    """How anomalib's torch model combines its two maps, from its quantiles. Raises BundleError where they are equal."""
    found = {name: float(value.detach()) for name, value in model.quantiles.items()}
    try:
        return MapScale.of(found["qa_st"], found["qb_st"], found["qa_ae"], found["qb_ae"])
    except ValueError as error:
        raise BundleError(f"efficient_ad: {error}; check the good images and run `cvad train` again") from error
