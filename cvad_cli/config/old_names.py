"""Names of earlier releases that are still read: old name -> present name. Only the present names are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OLD_SETTINGS: Final[Mapping[str, str]] = {"evaluation.pictures": "evaluation.images"}
"""Of dotted settings. An earlier name is read, with a warning, for one release."""

OLD_FILE_ROLES: Final[Mapping[str, str]] = {"probes": "agreement_samples"}
"""Of a bundle's data files, in its manifest and in the header of the file itself."""

OLD_TENSOR_NAMES: Final[Mapping[str, str]] = {"pictures": "images"}
"""Of the tensors in a bundle's data files."""

OLD_CHECKPOINT_SETTINGS: Final[Mapping[str, str]] = {"real_pictures": "real_images"}
"""Of the settings in a checkpoint that a run must share to go on from it."""
