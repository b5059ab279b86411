"""docs/derivations.md is true: what it names exists, GitHub can render it, and what no other test checks is checked."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cvad_cli.core.calibration import conformal_threshold
from cvad_cli.core.scoring import MemoryBank

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "derivations.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NAMED = re.compile(r"`((?:cvad_cli|tests|docs|scripts|anomalib)/[\w/.-]+)(?:::(\w+))?`")
MATHS = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.DOTALL)
CHANNELS = 4


def path_of(name: str) -> Path:
    """In the repository, or in the installed anomalib (found without importing it)."""
    spec = find_spec("anomalib") if name.startswith("anomalib/") else None
    return (Path(spec.origin).parents[1] if spec and spec.origin else ROOT) / name


@pytest.mark.parametrize("title", SECTIONS)
def test_each_derivation_names_the_file_that_implements_it_and_its_test(title: str) -> None:
    named = NAMED.findall(SECTIONS[title])
    assert any(path.startswith(("cvad_cli/", "anomalib/")) for path, _ in named)
    assert any(path.startswith("tests/") and test for path, test in named)
    for path, test in named:
        assert path_of(path).is_file(), f"{path} does not exist"
        if test:
            assert f"def {test}(" in path_of(path).read_text(encoding="utf-8"), f"{path} has no {test}"


def test_github_can_render_the_mathematics() -> None:
    text = re.sub(r"`[^`\n]+`", "", PAGE)
    assert text.count("$") % 2 == 0
    found = ["".join(pair) for pair in MATHS.findall(text)]
    assert len(found) > 100
    assert not [inline for _, inline in MATHS.findall(text) if "\n" in inline], "inline mathematics stays on its line"
    for formula in found:
        # Markdown takes a backslash before punctuation, and pairs of *, for itself before MathJax sees them.
        assert not re.search(r"\\[,;:!{}|\\#]|[*<>|#]", formula), formula
        assert formula.count("{") == formula.count("}"), formula
        assert formula.count(r"\left") - formula.count(r"\leftarrow") == formula.count(r"\right"), formula
        assert "\n\n" not in formula, formula


def test_reweighting_moves_an_image_score_by_one_part_in_b_at_most() -> None:
    rng = np.random.default_rng(0)
    for neighbours in (2, 3, 9):
        for scale in (0.01, 1.0, 30.0):
            bank = MemoryBank(scale * rng.normal(size=(60, 5)), num_neighbors=neighbours)
            found = bank.score(scale * rng.normal(size=(20, 5)))
            plain = float(found.distances.max())
            assert (1 - 1 / neighbours) * plain * (1 - 1e-9) <= found.image_score <= plain


@pytest.fixture(scope="module")
def model():
    """anomalib's EfficientAD in eval mode, small in channels, with seeded weights that answer audibly."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = EfficientAdModel(teacher_out_channels=CHANNELS).eval()
        for network in (made.teacher, made.student):
            for layer in network.children():
                if isinstance(layer, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(layer.weight)
        made.mean_std["mean"] = torch.randn(1, CHANNELS, 1, 1)
        made.mean_std["std"] = 0.5 + torch.rand(1, CHANNELS, 1, 1)
    return made


def random_images(count: int, seed: int):
    import torch

    return torch.from_numpy(np.random.default_rng(seed).random((count, 3, 256, 256), np.float32))


def standardised(model, images):
    return (model.teacher(images) - model.mean_std["mean"]) / model.mean_std["std"]


def losses(model, images, unrelated, seed: int):
    """anomalib's three losses, the gradient of the first by each squared difference, and the changed image."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        distances = model.compute_student_teacher_distance(images)[1].detach().requires_grad_()
        found = model.compute_losses(images, unrelated, distances)
        torch.manual_seed(seed)
        changed = model.choose_random_aug_image(images)
    (gradient,) = torch.autograd.grad(found[0], distances)
    return [loss.item() for loss in found], gradient.numpy(), changed


def test_the_student_is_taught_by_its_hardest_thousandth_and_the_penalty(model) -> None:
    import torch

    images, unrelated = random_images(1, 1), random_images(1, 2)
    (found, _, _), gradient, _ = losses(model, images, unrelated, seed=3)
    with torch.no_grad():
        differences = (standardised(model, images) - model.student(images)[:, :CHANNELS]).square()
        penalty = model.student(unrelated)[:, :CHANNELS].square().mean()
    entries = np.sort(differences.numpy().ravel())
    kept = len(entries) - math.ceil(0.999 * (len(entries) - 1))
    assert found == pytest.approx(entries[-kept:].mean() + float(penalty), rel=1e-5)
    assert kept == pytest.approx(0.001 * len(entries), abs=2)
    taught = differences.numpy() >= entries[-kept]
    np.testing.assert_allclose(gradient, taught / kept, rtol=1e-5)
    paper = 384 * 56 * 56
    assert f"{paper - math.ceil(0.999 * (paper - 1)):,} of {paper:,}" in PAGE


def test_the_autoencoder_and_the_student_are_taught_on_one_changed_image(model) -> None:
    import torch

    images = random_images(1, 4)
    (_, of_autoencoder, of_student), _, changed = losses(model, images, random_images(1, 5), seed=6)
    assert not torch.equal(changed, images)
    with torch.no_grad():
        blurred = model.ae(changed, changed.shape[-2:])
        teacher, student = standardised(model, changed), model.student(changed)[:, CHANNELS:]
    assert of_autoencoder == pytest.approx(float((teacher - blurred).square().mean()), rel=1e-5)
    assert of_student == pytest.approx(float((blurred - student).square().mean()), rel=1e-5)


@pytest.fixture(scope="module")
def lightning(model):
    """anomalib's Lightning module round the model: its statistics are methods of that."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.models import EfficientAd
    made = EfficientAd(teacher_out_channels=CHANNELS, evaluator=False, visualizer=False, post_processor=False)
    made.model = model
    return made


def test_the_teacher_is_standardised_channel_by_channel(model, lightning) -> None:
    import torch

    images = random_images(3, 7)
    found = lightning.teacher_channel_mean_std([SimpleNamespace(image=images[:2]), SimpleNamespace(image=images[2:])])
    with torch.no_grad():
        answers = model.teacher(images).double()
    channels = answers.permute(1, 0, 2, 3).reshape(CHANNELS, -1)
    np.testing.assert_allclose(found["mean"].ravel(), channels.mean(1), rtol=1e-4)
    np.testing.assert_allclose(found["std"].ravel(), channels.std(1, unbiased=False), rtol=1e-3)
    scaled = (answers - found["mean"]) / found["std"]
    assert float(scaled.square().mean()) == pytest.approx(1.0, abs=1e-3)


def test_quantiles_of_good_pixels_become_0_and_a_tenth(model, lightning) -> None:
    import torch

    images = random_images(2, 8)
    good = [SimpleNamespace(image=images, gt_label=torch.zeros(2)), SimpleNamespace(image=-images, gt_label=[1, 1])]
    quantiles = lightning.map_norm_quantiles(good)  # the second batch is labelled defective and must not count
    plain = [model.get_maps(image[None], normalize=False) for image in images]
    model.quantiles.update(quantiles)
    with torch.no_grad():
        normed = [model.get_maps(image[None], normalize=True) for image in images]
        verdict = model(images)
    model.quantiles.update({name: torch.tensor(0.0) for name in quantiles})
    for which, name in enumerate(("st", "ae")):
        pixels = torch.cat([maps[which].ravel() for maps in plain]).numpy()
        low, high = np.quantile(pixels, [0.9, 0.995])
        expected = 0.1 * (pixels - low) / (high - low)
        found = torch.cat([maps[which].ravel() for maps in normed]).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
        assert float(quantiles[f"qa_{name}"]) == pytest.approx(low, rel=1e-4)
        assert np.mean(found > 0) == pytest.approx(0.1, abs=0.002)
        assert np.mean(found > 0.1) == pytest.approx(0.005, abs=0.0005)
        judged = torch.cat([maps[which][..., 16:-16, 16:-16].ravel() for maps in normed])
        assert float((judged > 0).double().mean()) == pytest.approx(0.1 / (56 / 64) ** 2, abs=0.005)
    together = torch.cat([0.5 * st + 0.5 * ae for st, ae in normed])
    torch.testing.assert_close(verdict.anomaly_map, together, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(verdict.pred_score, together.amax(dim=(-2, -1)), rtol=1e-3, atol=1e-5)


def test_the_scale_of_a_map_drops_out(lightning) -> None:
    import torch

    raw = torch.from_numpy(np.random.default_rng(9).gamma(2.0, size=(4, 64, 64)))

    def normed(maps):
        low, high = lightning._get_quantiles_of_maps([maps])
        return 0.1 * (maps - low) / (high - low)

    torch.testing.assert_close(normed(7.0 * raw + 3.0), normed(raw))


def test_efficientads_map_lies_a_pixel_and_a_half_off_its_cells(model) -> None:
    import torch

    cell = (20, 31)
    answers, distance = torch.zeros(1, 2 * CHANNELS, 56, 56), torch.zeros(1, CHANNELS, 56, 56)
    distance[0, :, cell[0], cell[1]] = 1.0
    with torch.no_grad():
        drawn, _ = model.compute_maps(torch.zeros(1, 3, 256, 256), answers, distance, normalize=False)
    mass = drawn[0, 0].numpy() / drawn.sum().item()
    centre = mass.sum(1) @ np.arange(256), mass.sum(0) @ np.arange(256)
    assert centre == pytest.approx([16 + 4 * at + 1.5 for at in cell], abs=1e-3)


@pytest.mark.parametrize(("n", "rate"), [(49, 0.1), (100, 0.02)])
def test_the_rate_of_one_calibration_set_follows_its_beta_distribution(n: int, rate: float) -> None:
    from scipy.stats import beta, kstest

    draws = np.random.default_rng(10).random((3_000, n))  # uniform scores: the rate above a threshold t is 1 - t
    rates = [1 - conformal_threshold(row, false_alarm_rate=rate).threshold for row in draws]
    k = math.ceil(round((n + 1) * (1 - rate), 9))
    assert kstest(rates, beta(n + 1 - k, k).cdf).pvalue > 0.01
    if n == 100:
        assert f"probability {beta(n + 1 - k, k).sf(0.04):.3f}." in PAGE
