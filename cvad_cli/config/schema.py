"""Every setting of cvad, its type, its default and its range: frozen dataclasses that check themselves at birth.

A YAML file holds only what differs from these defaults. `docs/configuration.md` describes each key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cvad_cli.config.checks import BadSettingError
from cvad_cli.config.checks import require as _require
from cvad_cli.config.execution import ExecutorConfig, RayConfig
from cvad_cli.config.processors import reading_threads

RUN_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"


PATCHCORE_BACKBONE: Final = "tf_efficientnet_lite0"
PATCHCORE_LAYERS: Final = ("blocks.2", "blocks.4")
"""Above WRN50's published figure on grid at a fraction of the cost: docs/benchmarks.md."""


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they reach the network."""

    format: Literal["mvtec", "folders"] = "mvtec"
    root: str = "datasets/mvtec_ad"
    category: str | None = None
    normal_dir: str = "train/good"
    test_normal_dir: str | None = None
    abnormal_dirs: tuple[str, ...] = ()
    mask_dir: str | None = None
    labels: str | None = None
    image_size: int = 256
    pixel_size_mm: float | None = None
    on_error: Literal["stop", "skip"] = "stop"
    max_megapixels: float = 100.0

    def __post_init__(self) -> None:
        _require(self, "image_size", 32 <= self.image_size <= 4096, "a side in pixels from 32 to 4096")
        known = self.pixel_size_mm is None or 0 < self.pixel_size_mm < float("inf")
        _require(self, "pixel_size_mm", known, "millimetres on the part above 0, or null")
        _require(self, "max_megapixels", self.max_megapixels > 0, "a number of megapixels above 0")


@dataclass(frozen=True)
class ModelConfig:
    """Which anomalib model, on which backbone. `options` reach the constructor of any other anomalib model.

    `backbone` and `layers` left null mean the model's own: `PATCHCORE_BACKBONE` and `PATCHCORE_LAYERS` for PatchCore,
    anomalib's default for any other model.
    """

    name: str = "patchcore"
    backbone: str | None = None
    layers: tuple[str, ...] | None = None
    weights: str | None = None
    coreset_ratio: float = 0.01
    num_neighbors: int = 9
    penalty_images: str = "generated"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = ("one",) if self.layers is None else self.layers
        _require(self, "layers", 0 < len(layers) == len(set(layers)), "one or more layer names, each once")
        _require(self, "coreset_ratio", 0 < self.coreset_ratio <= 1, "a share above 0 and at most 1")
        _require(self, "num_neighbors", self.num_neighbors >= 1, "a whole number from 1")


@dataclass(frozen=True)
class TrainConfig:
    """Bounds on the work of training."""

    max_memory: str = "4GB"

    def __post_init__(self) -> None:
        _require(self, "max_memory", parse_bytes(self.max_memory) is not None, "a size such as 512MB or 4GB")

    @property
    def max_memory_bytes(self) -> int:
        """`max_memory` as a number of bytes."""
        return parse_bytes(self.max_memory) or 0


@dataclass(frozen=True)
class TrainerConfig:
    """Lightning's knobs, for the models that are trained by gradients. `preset` and what follows: EfficientAD alone."""

    max_epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    devices: str = "1"
    strategy: str = "auto"
    precision: str = "auto"
    preset: Literal["full", "quick"] = "full"
    checkpoint_every: int | None = None
    patience: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        for key in ("max_epochs", "max_steps", "batch_size", "checkpoint_every", "patience"):
            value = getattr(self, key)
            _require(self, key, value is None or value >= 1, "a whole number from 1, or null")


@dataclass(frozen=True)
class CalibrationConfig:
    """How the threshold is taken from good images, and the false-alarm rate that it is to keep."""

    method: Literal["auto", "cross_conformal", "split_conformal"] = "auto"
    false_alarm_rate: float = 0.02
    folds: int = 5
    fraction: float = 0.2

    def __post_init__(self) -> None:
        _require(self, "false_alarm_rate", 0 < self.false_alarm_rate < 1, "a share between 0 and 1")
        _require(self, "folds", self.folds >= 2, "a whole number from 2")
        _require(self, "fraction", 0 < self.fraction < 1, "a share between 0 and 1")


@dataclass(frozen=True)
class EvaluationConfig:
    """What `cvad evaluate` measures and how many images it draws."""

    images: int = 24
    report: Literal["beside", "portable", "none"] = "beside"
    resolution: Literal["input", "original"] = "input"
    aupro_limit: float = 0.3

    def __post_init__(self) -> None:
        _require(self, "images", self.images >= 0, "a whole number from 0")
        _require(self, "aupro_limit", 0 < self.aupro_limit <= 1, "a false-positive rate above 0 and at most 1")


MAX_WORKERS: Final = 256


@dataclass(frozen=True)
class RuntimeConfig:
    """What judges images, and how they reach it. `auto` takes the quickest that agrees: docs/serving.md."""

    engine: Literal["auto", "openvino", "torch"] = "auto"
    precision: Literal["auto", "f32", "bf16", "f16", "int8"] = "auto"
    batch_size: int = 8
    workers: str = "auto"

    def __post_init__(self) -> None:
        _require(self, "batch_size", self.batch_size >= 1, "a whole number from 1")
        counted = self.workers.isdecimal() and 1 <= int(self.workers) <= MAX_WORKERS
        _require(self, "workers", counted or self.workers == "auto", f"auto, or a whole number from 1 to {MAX_WORKERS}")

    @property
    def worker_count(self) -> int:
        """Threads that read images ahead of the network."""
        return int(self.workers) if self.workers != "auto" else reading_threads()


@dataclass(frozen=True)
class WatchConfig:
    """When `cvad predict --watch` takes a file that has appeared."""

    poll_s: float = 0.2
    settle_s: float = 1.0
    give_up_s: float = 30.0

    def __post_init__(self) -> None:
        _require(self, "poll_s", 0.01 <= self.poll_s <= 3600, "seconds from 0.01 to 3600")
        _require(self, "settle_s", 0 <= self.settle_s <= 3600, "seconds from 0 to 3600")
        _require(self, "give_up_s", self.settle_s <= self.give_up_s <= 86400, "seconds from settle_s to 86400")


SECRET_SETTINGS: Final = ("qdrant.api_key",)
"""Settings whose value is shown and stored nowhere: `config.load` puts `HIDDEN` in its place."""

HIDDEN: Final = "***"


@dataclass(frozen=True)
class QdrantConfig:
    """Where the defect index is: a folder, or a server where `url` is set; and how a server's collection is built.

    `collection` left null means the run's name: an index belongs to one trained bundle.
    """

    url: str | None = None
    path: str = "runs/index"
    collection: str | None = None
    api_key: str | None = field(default=None, repr=False)
    prefer_grpc: bool = False
    timeout_s: int = 30
    retries: int = 4
    batch_size: int = 500
    shard_number: int | None = None
    replication_factor: int | None = None
    on_disk: bool = False
    quantization: Literal["scalar"] | None = None

    def __post_init__(self) -> None:
        import re

        plain = self.collection is None or re.fullmatch(RUN_NAME, self.collection) is not None
        _require(self, "collection", plain, "letters, digits, . _ -, or null for the run's name")
        if self.url is not None and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.url):
            # The value may hold a password, so the message does not show it.
            expected = "http(s)://host[:port][/prefix], without user or password (qdrant.api_key is for that)"
            raise BadSettingError(type(self), "url", expected, HIDDEN)
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            # Libraries quote a header that they refuse, so such a key must not reach one.
            expected = "printable ASCII without spaces or line ends, or null"
            raise BadSettingError(type(self), "api_key", expected, HIDDEN)
        _require(self, "retries", 0 <= self.retries <= 20, "a whole number from 0 to 20")
        for key in ("timeout_s", "batch_size", "shard_number", "replication_factor"):
            value = getattr(self, key)
            _require(self, key, value is None or value >= 1, "a whole number from 1")


SMALLEST_MAP_PX: Final = 16
"""A quarter of a cell of PatchCore's grid: less is where a map just touches its threshold."""


@dataclass(frozen=True)
class ClassifyConfig:
    """How defect regions are found, described and named.

    `min_area_px` left null means what `SMALLEST_MAP_PX` pixels of the anomaly map cover in the image.
    """

    backbone: str | None = None
    neighbors: int = 5
    unknown_rate: float = 0.1
    max_regions: int = 4
    hysteresis: float = 1.0
    bridge_px: int = 8
    min_area_px: float | None = None
    min_area_mm2: float = 0.0

    def __post_init__(self) -> None:
        _require(self, "neighbors", self.neighbors >= 1, "a whole number from 1")
        _require(self, "unknown_rate", 0 < self.unknown_rate < 1, "a share between 0 and 1")
        _require(self, "max_regions", self.max_regions >= 1, "a whole number from 1")
        _require(self, "hysteresis", 0 < self.hysteresis <= 1, "a share of the map's threshold above 0 and at most 1")
        for key in ("bridge_px", "min_area_px", "min_area_mm2"):
            _require(self, key, (getattr(self, key) or 0) >= 0, "a number from 0")


@dataclass(frozen=True)
class OutputConfig:
    """Where results go: `<root>/<name>/bundle`, `<root>/<name>/evaluation`."""

    root: str = "runs"


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run."""

    name: str
    seed: int = 42
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    qdrant: QdrantConfig = field(default_factory=QdrantConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        import re

        plain = re.fullmatch(RUN_NAME, self.name) is not None
        _require(self, "name", plain, "letters, digits, '.', '_' and '-': it becomes a folder's name")
        _require(self, "seed", 0 <= self.seed < 2**32, "a whole number from 0 to 4294967295")
        known = re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", self.device) is not None
        _require(self, "device", known, "auto, cpu, cuda, cuda:N, mps or xpu")


def parse_bytes(text: str) -> int | None:
    """Bytes in a size such as '512MB', '1.5 GB' or '4GiB'; None where the text is no size or is zero.

    >>> parse_bytes("4GB"), parse_bytes("2 KiB"), parse_bytes("much")
    (4000000000, 2048, None)
    """
    import re

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if found is None:
        return None
    number, prefix, binary = found.groups()
    power = " kmgt".index(prefix.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power) or None
