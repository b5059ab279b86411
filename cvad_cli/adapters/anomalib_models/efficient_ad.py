"""EfficientAD as anomalib defines it, without downloads: teacher and penalty images are passed in.

Batzner, Heckler, König: "EfficientAD", WACV 2024, arXiv 2303.14535. The losses equal anomalib's up to rounding and cost
less: the teacher processes both images of a step at once, the student computes only the half of its channels that a
term uses, and the hard features are selected instead of sorted. `tests/training/test_efficient_ad.py` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from anomalib.models import EfficientAd
from anomalib.models.image.efficient_ad import torch_model
from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel
from torch import nn
from torch.func import functional_call

from cvad_cli.adapters.anomalib_models.substitution import substituted
from cvad_cli.core.feature_targets import Moments
from cvad_cli.core.maps import quantile_range

HARD_SHARE: Final = 0.999
"""Quantile of the squared distances above which a feature is hard: paper section 3.2, p_hard."""

RECORDED_PRECISIONS: Final[Mapping[str, torch.dtype | None]] = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""Lightning's names of the precisions whose steps can be recorded. Gradient scaling (16-mixed) cannot be."""

Size = Literal["small", "medium"]
Losses = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""A good image, one for the penalty and the good one recoloured, to the three losses of `training_losses`."""
LearningRateSchedule = Callable[["LocalEfficientAd"], Any]
"""Gives what Lightning's `configure_optimizers` returns."""


def new_model(size: Size, channels: int, *, padding: bool, pad_maps: bool) -> EfficientAdModel:
    """anomalib's torch model with its own initialisation."""
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModelSize

    return EfficientAdModel(channels, EfficientAdModelSize(size), padding=padding, pad_maps=pad_maps)


def with_teacher(model: EfficientAdModel, teacher: nn.Module, device: str) -> EfficientAdModel:
    """The model with a teacher's weights, on `device`, in the fast memory format."""
    model.teacher.load_state_dict(teacher.state_dict())
    placed: EfficientAdModel = model.to(device).to(memory_format=torch.channels_last)
    return placed


def training_losses(
    model: EfficientAdModel, image: torch.Tensor, penalty: torch.Tensor, augmented: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student, autoencoder and student-to-autoencoder loss (paper section 3.2 and 3.3) of one step.

    RGB (1, 3, h, w) in 0..1 each: a good image, an image for the penalty, the good image recoloured.
    """
    channels = model.teacher_out_channels
    with torch.no_grad():
        mean, deviation = model.mean_std["mean"], model.mean_std["std"]
        teacher_features = (model.teacher(torch.cat([image, augmented])) - mean) / deviation
    student_features = _student(model, torch.cat([image, penalty]), slice(0, channels))
    loss_hard = hard_feature_loss((teacher_features[:1] - student_features[:1]) ** 2)
    loss_penalty = torch.mean(student_features[1:] ** 2)
    autoencoder_features = model.ae(augmented, augmented.shape[-2:])
    student_copy = _student(model, augmented, slice(channels, 2 * channels))
    loss_ae = torch.mean((teacher_features[1:] - autoencoder_features) ** 2)
    loss_stae = torch.mean((autoencoder_features - student_copy) ** 2)
    return loss_hard + loss_penalty, loss_ae, loss_stae


def hard_feature_loss(distance: torch.Tensor) -> torch.Tensor:
    """Mean of the distances at or above their `HARD_SHARE` quantile, without sorting them all.

    At or above the quantile p are the n - ceil(p (n - 1)) largest distances. The result equals anomalib's except where
    distances tie at the quantile.
    """
    flat = distance.flatten().float()
    rank = HARD_SHARE * (len(flat) - 1)
    largest = len(flat) - int(-(-rank // 1))
    return flat.topk(largest, sorted=False).values.mean()


def _student(model: EfficientAdModel, images: torch.Tensor, part: slice) -> torch.Tensor:
    """Some of the student's output channels: only their rows of the last layer are computed."""
    names = [name for name, module in model.student.named_modules() if isinstance(module, nn.Conv2d)]
    last: Any = model.student.get_submodule(names[-1])
    rows = {f"{names[-1]}.weight": last.weight[part], f"{names[-1]}.bias": last.bias[part]}
    answer: torch.Tensor = functional_call(model.student, rows, (images,))
    return answer


class _Losses(nn.Module):
    """`training_losses` as a module, so that torch can record it as a CUDA graph."""

    def __init__(self, model: EfficientAdModel, precision: torch.dtype | None) -> None:
        super().__init__()
        self.model, self._precision = model, precision
        self.read: tuple[torch.Tensor, ...] = ()
        """Tensors that the recorded graph reads besides its inputs and weights. They must live as long as the graph."""

    def forward(self, image: torch.Tensor, penalty: torch.Tensor, augmented: torch.Tensor) -> Any:
        # Casts of weights that autocast caches between calls would be missing in the recorded graph.
        kind, enabled = image.device.type, self._precision is not None
        with torch.autocast(kind, self._precision or torch.bfloat16, enabled=enabled, cache_enabled=False):
            return training_losses(self.model, image, penalty, augmented)


def recorded_losses(model: EfficientAdModel, like: torch.Tensor, precision: torch.dtype | None) -> Losses:
    """`training_losses` recorded once as CUDA graphs, forward and backward, for images of the shape of `like`.

    With one image per step, a GPU waits for Python, which starts hundreds of small kernels one by one.
    """
    sample = tuple(torch.rand_like(like).contiguous(memory_format=torch.channels_last) for _ in range(3))
    losses = _Losses(model, precision).train()
    with _statistics_on(like.device) as read, torch.autocast(like.device.type, enabled=False):  # its own is inside
        recorded: Any = torch.cuda.make_graphed_callables(losses, sample, allow_unused_input=True)
    losses.read = read
    model.zero_grad(set_to_none=True)
    return recorded  # type: ignore[no-any-return]


@contextmanager
def _statistics_on(device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
    """Keep ImageNet's statistics on `device`. anomalib creates them on the CPU in each call: no graph records that."""
    former = torch_model.imagenet_norm_batch
    offset = former(torch.zeros(1, 3, 1, 1, device=device))
    factor = former(torch.ones(1, 3, 1, 1, device=device)) - offset
    with substituted(torch_model, "imagenet_norm_batch", lambda x: x * factor + offset):
        yield offset, factor


class LocalEfficientAd(EfficientAd):
    """anomalib's Lightning module, without its downloads. Teacher and statistics must be in the model already."""

    _penalty: Iterator[torch.Tensor]
    _learning_rate_schedule: LearningRateSchedule
    _recorded: tuple[Losses, ...] = ()
    """A tuple, so that torch does not register the model's weights twice."""

    @classmethod
    def around(
        cls, model: EfficientAdModel, penalty: Iterator[torch.Tensor], learning_rate_schedule: LearningRateSchedule
    ) -> LocalEfficientAd:
        """The module that trains `model`. Not a constructor, since Lightning would copy its arguments."""
        channels = model.teacher_out_channels
        module = cls(
            teacher_out_channels=channels, pre_processor=False, post_processor=False, evaluator=False, visualizer=False
        )
        module.model, module._penalty, module._learning_rate_schedule = model, penalty, learning_rate_schedule
        return module

    def learning(self) -> list[nn.Parameter]:
        """The parameters that are trained: student and autoencoder."""
        return [*self.model.student.parameters(), *self.model.ae.parameters()]

    def configure_optimizers(self) -> Any:
        """The optimizer and learning rate of the schedule."""
        return self._learning_rate_schedule(self)

    def on_train_start(self) -> None:
        """Skip anomalib's downloads, which it would start here."""
        self.model.teacher.eval()
        self._recorded = ()

    def training_step(self, batch: Any, *_: Any, **__: Any) -> Any:
        """The sum of the three losses on one good image (1, 3, h, w)."""
        image = batch.to(memory_format=torch.channels_last)
        penalty = next(self._penalty).to(image.device).contiguous(memory_format=torch.channels_last)
        augmented = self.model.choose_random_aug_image(image)
        losses = self._losses(image)(image, penalty, augmented)
        return losses[0] + losses[1] + losses[2]

    def _losses(self, image: torch.Tensor) -> Losses:
        """`training_losses` of this model: recorded on one CUDA device, otherwise computed in each step."""
        precision = RECORDED_PRECISIONS.get(str(self.trainer.precision), ...)
        if image.device.type != "cuda" or self.trainer.world_size > 1 or precision is ...:
            return partial(training_losses, self.model)
        if not self._recorded:
            self._recorded = (recorded_losses(self.model, image, precision),)
        return self._recorded[0]

    def on_validation_start(self) -> None:
        """Skip anomalib's quantiles: they are measured once, after training."""

    def validation_step(self, batch: Any, *_: Any, **__: Any) -> None:
        """The distance between student and teacher on a good image that is not trained on."""
        image = batch.to(memory_format=torch.channels_last)
        distance = self.model.compute_student_teacher_distance(image)[1].float().mean()
        self.log("held_out_distance", distance, on_epoch=True, batch_size=len(image), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only tensors and plain values, so that the file opens without running code."""
        checkpoint.pop("hyper_parameters", None)


@torch.no_grad()
def teacher_moments(teacher: nn.Module, images: Iterator[torch.Tensor]) -> Moments:
    """Mean and covariance of a teacher's features, over all positions of all images (1, 3, h, w)."""
    moments: Moments | None = None
    for image in images:
        features = teacher(image).flatten(2)[0].T.float().cpu().numpy()
        moments = moments or Moments(features.shape[1])
        moments.add(features)
    if moments is None:
        raise ValueError("images: expected at least one")
    return moments


@torch.no_grad()
def set_statistics(model: EfficientAdModel, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Store the channels' mean and standard deviation in `model`, from (c,) and (c, c): paper algorithm 1, line 4-9."""
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    for name, values in (("mean", mean), ("std", deviation)):
        model.mean_std[name].data.copy_(torch.from_numpy(values.astype(np.float32))[None, :, None, None])


@torch.no_grad()
def set_quantiles(model: EfficientAdModel, images: Iterator[torch.Tensor]) -> None:
    """Measure the 90 % and 99.5 % quantiles of both maps over good images (paper algorithm 2); store them in `model`.

    Raises ValueError where those of a map are equal.
    """
    from anomalib.models.image.efficient_ad.torch_model import reduce_tensor_elems

    pairs = [model.get_maps(image, normalize=False) for image in images]
    for (name, full_name), maps in zip(
        (("st", "student"), ("ae", "autoencoder")), zip(*pairs, strict=True), strict=True
    ):
        values = reduce_tensor_elems(torch.cat([each.float().cpu() for each in maps]))
        low, high = (torch.quantile(values, share) for share in (0.9, 0.995))
        quantile_range(full_name, float(low), float(high))
        for bound, quantile in (("qa", low), ("qb", high)):
            model.quantiles[f"{bound}_{name}"].data.copy_(quantile)
