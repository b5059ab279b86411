"""anomalib's own EfficientAD teachers, downloaded as anomalib downloads them."""

from __future__ import annotations

from pathlib import Path

from cvad_cli.errors import ModelError
from cvad_cli.files import replacing

FOLDER = "efficientad_pretrained_weights"


def fetch_teacher(size: str) -> Path:
    """Path of a safetensors file with anomalib's teacher of this size; downloaded once, verified by its hash.

    The download holds pickles; they are read with torch's `weights_only` loader. Raises ModelError without internet.
    """
    import torch
    from anomalib.data.utils import download_and_extract
    from anomalib.models.image.efficient_ad.lightning_model import WEIGHTS_DOWNLOAD_INFO
    from anomalib.utils.path import get_pretrained_weights_dir
    from safetensors.torch import save_file

    root = Path(get_pretrained_weights_dir())
    pickled = root / FOLDER / f"pretrained_teacher_{size}.pth"
    converted = pickled.with_suffix(".safetensors")
    if converted.is_file():
        return converted
    try:
        if not pickled.is_file():
            download_and_extract(root, WEIGHTS_DOWNLOAD_INFO)
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"model.weights: anomalib's teacher could not be fetched: {error}. Without internet leave model.weights "
            f"null (the packaged teacher), or copy {pickled.name} to {pickled.parent} from a machine that has it"
        ) from error
    with replacing(converted) as staged:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, staged)
    return converted
