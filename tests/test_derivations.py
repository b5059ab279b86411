"""docs/derivations.md in numbers: EfficientAD's formulas against anomalib's code, and the paths that it names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

CHANNELS = 8
SIDE = 256
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "derivations.md").read_text("utf-8")


@pytest.fixture(scope="module")
def model():
    """anomalib's EfficientAD with the small PDN, few channels, random weights and a standardised teacher."""
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = EfficientAdModel(teacher_out_channels=CHANNELS)
    mean, std = (torch.from_numpy(each).float()[None, :, None, None] for each in standards(model))
    model.mean_std.update({"mean": mean, "std": std})
    return model.eval()


def pictures(seed: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def run(network, *arguments) -> np.ndarray:
    with torch.no_grad():
        return network(*arguments).double().numpy()


def standards(model) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each teacher channel over all cells of all pictures."""
    answers = run(model.teacher, pictures(1))
    mean = answers.mean(axis=(0, 2, 3))
    return mean, np.sqrt((answers**2).mean(axis=(0, 2, 3)) - mean**2)


def standardised(model, batch: torch.Tensor) -> np.ndarray:
    mean, std = (model.mean_std[key].double().numpy() for key in ("mean", "std"))
    return (run(model.teacher, batch) - mean) / std


def test_the_standardised_teacher_is_anomalibs(model):
    from anomalib.models import EfficientAd

    lightning = EfficientAd(teacher_out_channels=CHANNELS, pre_processor=False, evaluator=False, visualizer=False)
    lightning.model.teacher.load_state_dict(model.teacher.state_dict())
    batches = [type("Batch", (), {"image": picture[None]}) for picture in pictures(1)]
    found = lightning.teacher_channel_mean_std(batches)
    mean, std = standards(model)
    np.testing.assert_allclose(found["mean"].flatten(), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["std"].flatten(), std, rtol=1e-3)
    assert (standardised(model, pictures(1)) ** 2).mean() == pytest.approx(1.0, rel=1e-3)


def test_the_hard_feature_loss_is_the_mean_above_the_99_9_percent_quantile(model, monkeypatch):
    batch, off_part = pictures(2, 1), pictures(3, 1)
    monkeypatch.setattr(model, "choose_random_aug_image", lambda image: image)
    _, distance = model.compute_student_teacher_distance(batch)
    model.ae.eval()
    with torch.no_grad():
        loss_st, loss_ae, loss_stae = (float(loss) for loss in model.compute_losses(batch, off_part, distance))
    answers, teacher = run(model.student, batch), standardised(model, batch)
    autoencoder = run(model.ae, batch, (SIDE, SIDE))
    squared = (teacher - answers[:, :CHANNELS]) ** 2
    np.testing.assert_allclose(distance.detach(), squared, rtol=1e-3, atol=1e-5)
    hard = squared[squared >= np.quantile(squared, 0.999)]
    penalty = (run(model.student, off_part)[:, :CHANNELS] ** 2).mean()
    assert len(hard) == pytest.approx(0.001 * squared.size, abs=1.5)
    assert loss_st == pytest.approx(hard.mean() + penalty, rel=1e-3)
    assert loss_ae == pytest.approx(((teacher - autoencoder) ** 2).mean(), rel=1e-3)
    assert loss_stae == pytest.approx(((autoencoder - answers[:, CHANNELS:]) ** 2).mean(), rel=1e-3)


def test_only_the_hard_features_have_a_gradient(model, monkeypatch):
    monkeypatch.setattr(model, "choose_random_aug_image", lambda image: image)
    distance = torch.rand(1, CHANNELS, 56, 56, generator=torch.Generator().manual_seed(4)).requires_grad_()
    loss, _, _ = model.compute_losses(pictures(2, 1), pictures(3, 1), distance)
    (gradient,) = torch.autograd.grad(loss, distance)
    pushed = gradient != 0
    assert int(pushed.sum()) == pytest.approx(0.001 * distance.numel(), abs=1.5)
    assert distance[pushed].min() >= distance[~pushed].max()


def test_maps_and_their_quantile_normalisation(model):
    from anomalib.models import EfficientAd

    lightning = EfficientAd(teacher_out_channels=CHANNELS, pre_processor=False, evaluator=False, visualizer=False)
    batch = pictures(6)
    with torch.no_grad():
        plain = [each.double().numpy() for each in model.get_maps(batch, normalize=False)]
    cells = ((standardised(model, batch) - run(model.student, batch)[:, :CHANNELS]) ** 2).mean(axis=1)
    middle = plain[0][:, 0, 18::4, 18::4][:, :2, :2]  # far from interpolation's ends: between the right cells
    assert cells.min() <= middle.min() <= middle.max() <= cells.max()

    quantiles, expected = {}, []
    for name, values in zip(("st", "ae"), plain, strict=True):
        low, high = np.quantile(values, [0.9, 0.995])
        theirs = lightning._get_quantiles_of_maps([torch.from_numpy(values).float()])
        np.testing.assert_allclose([float(each) for each in theirs], [low, high], rtol=1e-4)
        quantiles |= {f"qa_{name}": torch.tensor(low).float(), f"qb_{name}": torch.tensor(high).float()}
        expected.append(0.1 * (values - low) / (high - low))
        np.testing.assert_allclose(np.quantile(expected[-1], [0.9, 0.995]), [0.0, 0.1], atol=1e-9)
    model.quantiles.update(quantiles)
    with torch.no_grad():
        found = model(batch)
    combined = 0.5 * expected[0] + 0.5 * expected[1]
    np.testing.assert_allclose(found.anomaly_map, combined, atol=1e-3)
    np.testing.assert_allclose(found.pred_score.flatten(), combined.max(axis=(1, 2, 3)), atol=1e-3)


def test_the_false_alarm_rate_of_one_calibration_set_is_as_quoted():
    from scipy.stats import beta

    assert beta(1, 50).mean() == pytest.approx(1 / 51)
    assert beta(1, 50).ppf(0.95) == pytest.approx(0.058, abs=5e-4)


def test_every_path_that_the_page_names_exists():
    named = re.findall(r"`((?:cvad_cli|tests|docs|scripts|configs)/[\w./-]+)`", PAGE)
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_part_names_its_code_and_its_test():
    for part in PAGE.split("\n## ")[1:]:
        assert "Code: " in part, part.splitlines()[0]
        assert "`tests/test_" in part, part.splitlines()[0]


def test_the_mathematics_is_closed():
    assert PAGE.count("$$") % 2 == 0
    for paragraph in re.sub(r"\$\$.*?\$\$", "", PAGE, flags=re.S).split("\n\n"):
        assert paragraph.count("$") % 2 == 0, paragraph
