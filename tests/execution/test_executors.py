"""Work spread over processes or a Ray cluster comes back whole and in order, whoever dies on the way."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cvad_cli.adapters.executors.bundle_transfer import BundleArchive, pack, unpack
from cvad_cli.adapters.executors.processes import InProcess, Processes
from cvad_cli.adapters.executors.ray_cluster import ClusterOptions, RayCluster
from cvad_cli.adapters.executors.scheduler import RetryPolicy
from cvad_cli.config.transfer import TransferError
from cvad_cli.errors import BundleError, DataError, ResourceError
from cvad_cli.ports import Executor

WITHOUT_RAY = importlib.util.find_spec("ray") is None


class Job:
    """What every job of these tests is."""

    def __init__(self, folder: Path | None = None) -> None:
        self.bundle = folder

    def at(self, bundle: Path) -> Any:
        return type(self)(bundle)

    def __call__(self, items: Iterable[int]) -> Iterator[Any]:
        for item in items:
            yield self.done(item)

    def done(self, item: int) -> Any:
        return item**2


class SlowAtFirst(Job):
    def done(self, item: int) -> int:
        time.sleep(0.5 if item == 0 else 0)
        return item


class DiesOnce(Job):
    """Kills its worker at the number 3, unless that happened before: `bundle` is where that is written down."""

    def at(self, bundle: Path) -> Any:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _dies_once, (str(self.marker),)

    marker = Path()

    def done(self, item: int) -> int:
        if item == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item


def _dies_once(marker: str) -> DiesOnce:
    job = DiesOnce()
    job.marker = Path(marker)
    return job


class DiesAlways(Job):
    def done(self, item: int) -> int:
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item


class RefusesThree(Job):
    def done(self, item: int) -> int:
        if item == 3:
            raise DataError("three.png: is not an image")
        return item


class Unopenable:
    """Pickled without complaint; where it arrives, opening it fails."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _not_here, ()


def _not_here() -> None:
    raise ValueError("not here")


class OddError(Exception):
    """Pickled without complaint; to open it takes an argument more than is sent."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Untravelled(Job):
    def done(self, item: Any) -> Any:
        if item == "outcome that cannot be sent":
            return lambda: None
        if item == "outcome that cannot be opened":
            return Unopenable()
        if item == "no memory":
            raise MemoryError("of 3 TB")
        raise OddError("this", "that")


class ReadsItsBundle(Job):
    def done(self, item: int) -> tuple[int, str, str]:
        text = (self.bundle / "manifest.json").read_text("utf-8")
        return item, text, str(self.bundle)


class TellsItsThreads(Job):
    def done(self, item: int) -> tuple[int, int]:
        import threadpoolctl
        import torch

        pools = threadpoolctl.threadpool_info()
        return torch.get_num_threads(), max(pool["num_threads"] for pool in pools)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(
    scope="module",
    params=[
        "processes",
        pytest.param(
            "ray",
            marks=[
                pytest.mark.ci,
                pytest.mark.skipif(WITHOUT_RAY, reason="Ray is not installed: pip install 'cvad[ray]'"),
            ],
        ),
    ],
)
def executor(request: pytest.FixtureRequest, said: list[str]) -> Iterator[Executor]:
    """Two workers with one thread each, kept for all tests of this file."""
    retry_policy = RetryPolicy(retries=1, warn=said.append)
    if request.param == "processes":
        with Processes(2, threads=1, retry_policy=retry_policy) as opened:
            yield opened
        return
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where workers find the jobs of these tests
        warnings.simplefilter("ignore")  # of Ray's own start-up
        with RayCluster(ClusterOptions(None, 2, 1, 0.0), retry_policy) as opened:
            yield opened


def test_outcomes_come_in_order_whatever_the_shards(executor: Executor) -> None:
    for shard in (1, 3, 100):
        assert list(executor.map(Job(), range(7), shard=shard)) == [0, 1, 4, 9, 16, 25, 36]
    assert list(executor.map(Job(), [])) == []


def test_a_slow_first_item_holds_back_no_more_than_a_bounded_number(executor: Executor) -> None:
    begun: list[int] = []
    outcomes = executor.map(SlowAtFirst(), range(50), watch=lambda place, outcome: begun.append(place))
    assert next(iter(outcomes)) == 0
    assert max(begun) < 4 + 2  # two shards a worker, and those handed out as the first came back
    assert list(outcomes) == list(range(1, 50))


def test_the_shard_of_a_killed_worker_is_done_again(executor: Executor, said: list[str], tmp_path: Path) -> None:
    said.clear()
    job = _dies_once(str(tmp_path / "died"))
    assert list(executor.map(job, range(8), shard=2)) == list(range(8))
    assert (tmp_path / "died").exists()
    assert said == ["a worker died; its work (number 2) is done again by a new one"]


def test_work_that_kills_every_worker_is_given_up_by_name(executor: Executor) -> None:
    with pytest.raises(ResourceError, match=r"died 2 times on the same work \(number 4\)"):
        list(executor.map(DiesAlways(), range(6)))
    assert list(executor.map(Job(), range(3))) == [0, 1, 4], "the executor is fit for other work"


def test_work_that_kills_every_worker_can_stand_as_lost_among_the_rest(executor: Executor) -> None:
    found = list(executor.map(DiesAlways(), range(6), lost=lambda item, reason: (item, type(reason))))
    assert found == [0, 1, 2, (3, ResourceError), 4, 5]


def test_what_the_work_raises_is_raised_here_and_nothing_is_tried_again(executor: Executor, said: list[str]) -> None:
    said.clear()
    with pytest.raises(DataError, match=r"three\.png"):
        list(executor.map(RefusesThree(), range(8)))
    assert said == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("outcome that cannot be sent", r"outcomes of Untravelled \(function\) cannot be sent .*lambda"),
        ("outcome that cannot be opened", r"outcomes of Untravelled cannot be opened .*ValueError: not here"),
        ("error that cannot be opened", r"OddError: this and that"),
    ],
)
def test_what_cannot_come_back_is_told_by_name_as_a_bug(
    executor: Executor, said: list[str], kind: str, message: str
) -> None:
    said.clear()
    with pytest.raises(TransferError, match=message):
        list(executor.map(Untravelled(), [kind]))
    assert said == [], "no worker died of it"
    assert list(executor.map(Job(), range(3))) == [0, 1, 4], "the executor is fit for other work"


def test_what_cannot_be_sent_is_told_by_name_as_a_bug(executor: Executor, said: list[str]) -> None:
    said.clear()
    with pytest.raises(TransferError, match=r"items for Job \(function\) cannot be sent .*lambda"):
        list(executor.map(Job(), [lambda: None]))
    with pytest.raises(TransferError, match=r"items for Job cannot be opened .*not here"):
        list(executor.map(Job(), [Unopenable()]))
    job = Job()
    job.held = lambda: None
    with pytest.raises(TransferError, match=r"the job \(Job\) cannot be sent .*lambda"):
        list(executor.map(job, range(3)))
    assert said == [], "no worker died of it"


def test_a_worker_that_is_out_of_memory_says_so(executor: Executor) -> None:
    with pytest.raises(MemoryError, match="of 3 TB"):
        list(executor.map(Untravelled(), ["no memory"]))


def test_who_stops_listening_stops_the_work(executor: Executor) -> None:
    outcomes = executor.map(Job(), range(1000))
    assert [next(outcomes) for _ in range(3)] == [0, 1, 4]
    outcomes.close()
    assert list(executor.map(Job(), range(2))) == [0, 1]


def test_workers_keep_to_their_threads(executor: Executor) -> None:
    assert list(executor.map(TellsItsThreads(), range(2))) == [(1, 1), (1, 1)]


def test_a_bundle_that_is_seen_is_read_where_it_lies(executor: Executor, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    outcomes = list(executor.map(ReadsItsBundle(tmp_path), range(3)))
    assert outcomes == [(item, "{}", str(tmp_path)) for item in range(3)]


def test_in_process_work_is_one_stream_and_leaves_the_threads_as_they_were() -> None:
    import torch

    before = torch.get_num_threads()
    with InProcess(threads=1) as here:
        assert here.workers == 1
        assert list(here.map(TellsItsThreads(), range(1))) == [(1, 1)]
    assert torch.get_num_threads() == before


def test_a_killed_command_leaves_no_worker_behind(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(
        "import time\n"
        "from cvad_cli.adapters.executors.processes import Processes\n"
        "from cvad_cli.adapters.executors.scheduler import RetryPolicy\n"
        "from test_executors import WorkerId\n"
        "if __name__ == '__main__':\n"
        "    workers = Processes(1, threads=1, retry_policy=RetryPolicy(0, print))\n"
        "    print(*workers.map(WorkerId(), [0]), flush=True)\n"
        "    time.sleep(60)\n",
        encoding="utf-8",
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    command = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    with command:
        worker = int(command.stdout.readline())
        command.kill()
    eventually(lambda: not alive(worker), seconds=20)


class CountsItsOpenings(Job):
    opened = 0

    def __call__(self, items: Iterable[int]) -> Iterator[int]:
        self.opened += 1
        for _ in items:
            yield self.opened


def test_a_job_stays_open_from_one_call_to_the_next() -> None:
    job = CountsItsOpenings()
    with Processes(1, threads=1, retry_policy=RetryPolicy(0, print)) as executor:
        assert list(executor.map(job, range(2))) == [1, 2]
        assert list(executor.map(job, range(1))) == [3]
        assert list(executor.map(CountsItsOpenings(), range(1))) == [1]


class WorkerId(Job):
    def done(self, item: int) -> int:
        return os.getpid()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(holds: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_bundle_that_is_not_seen_is_unpacked_once_and_whole(tmp_path: Path) -> None:
    origin, cache = tmp_path / "far" / "bundle", tmp_path / "cache"
    (origin / "deeper").mkdir(parents=True)
    (origin / "manifest.json").write_text('{"a": 1}', encoding="utf-8")
    (origin / "deeper" / "data.bin").write_bytes(bytes(range(256)))
    (origin / ".half-written").write_text("no", encoding="utf-8")
    archive = pack(origin)
    assert unpack(archive, cache) == origin, "on the machine that packed it, nothing is copied"
    origin.rename(tmp_path / "gone")
    there = unpack(archive, cache)
    assert there.parent == cache
    assert (there / "deeper" / "data.bin").read_bytes() == bytes(range(256))
    assert sorted(path.name for path in there.rglob("*")) == ["data.bin", "deeper", "manifest.json"]
    stamp = (there / "manifest.json").stat().st_mtime_ns
    assert unpack(archive, cache) == there
    assert (there / "manifest.json").stat().st_mtime_ns == stamp, "not written again"
    (there / "deeper" / "data.bin").write_bytes(b"short")
    assert (unpack(archive, cache) / "deeper" / "data.bin").stat().st_size == 256, "a damaged copy is replaced"


def _unpack_in_turn(archives: list[BundleArchive], cache: Path, start: Any, failures: Any) -> None:
    start.wait(timeout=60)
    try:
        for archive in archives:
            os.utime(unpack(archive, cache), (1, 1))  # as if it had been unused for long: others may clear it away
    except Exception as error:  # noqa: BLE001 - it is told
        failures.put(repr(error))


def test_processes_that_clear_one_cache_away_together_tolerate_each_other(tmp_path: Path) -> None:
    import numpy as np

    content = np.arange(200, dtype=np.uint8)
    archives = [BundleArchive(str(tmp_path / "nowhere"), f"{number:04x}", {"a.bin": content}) for number in range(200)]
    context = multiprocessing.get_context("spawn")
    start, failures = context.Barrier(4), context.SimpleQueue()
    workers = [
        context.Process(target=_unpack_in_turn, args=(archives[number::4], tmp_path / "cache", start, failures))
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert failures.empty(), failures.get()
    assert len(list((tmp_path / "cache").iterdir())) <= 8 + 4


def test_a_parcel_writes_nothing_outside_its_folder(tmp_path: Path) -> None:
    import numpy as np

    archive = BundleArchive(str(tmp_path / "nowhere"), "00", {"../../escaped": np.zeros(3, dtype=np.uint8)})
    with pytest.raises(BundleError, match="leads out"):
        unpack(archive, tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("escaped"))


def test_a_node_keeps_a_bounded_number_of_bundles(tmp_path: Path) -> None:
    import numpy as np

    for number in range(10):
        content = {"manifest.json": np.array([number], dtype=np.uint8)}
        unpack(BundleArchive(str(tmp_path / "nowhere"), f"{number:02x}", content), tmp_path / "cache")
        os.utime(tmp_path / "cache" / f"{number:02x}", (number, number))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [f"{number:02x}" for number in range(2, 10)]
