"""Nothing uses more threads than there are processors for this process: affinity and quotas of containers count."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvad_cli.assembly.execution.executors import keeping_threads, run_here
from cvad_cli.config.execution import ExecutorConfig
from cvad_cli.config.load import load_config
from cvad_cli.config.schema import RunConfig

REPOSITORY = Path(__file__).parents[2]

COUNT_THREADS = """
import json, os, sys

if sys.argv[1] == "affinity":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
import numpy as np
import openvino
from cvad_cli.adapters.executors.processes import Processes
from cvad_cli.adapters.machine.system_info import describe_machine
from cvad_cli.adapters.neighbours import _Pool
from cvad_cli.adapters.prefetch import Prefetch
from cvad_cli.adapters.runtime_openvino.compiled import CompiledNetwork
from cvad_cli.assembly.execution.executors import keeping_threads, open_executor
from cvad_cli.config.execution import ExecutorConfig
from cvad_cli.config.processors import computing_threads, reading_threads, usable_processors
from cvad_cli.config.schema import RunConfig

def network(folder):
    given = openvino.opset13.parameter([1, 8, 8, 3], np.uint8)
    path = folder / "model.xml"
    openvino.save_model(openvino.Model([openvino.opset13.convert(given, "f32")], [given]), path)
    compiled = CompiledNetwork(path, "f32", max_at_once=8)
    return compiled._alone.get_compiled_model().get_property("INFERENCE_NUM_THREADS")

@keeping_threads
def task(settings):
    import cv2, faiss, threadpoolctl, torch
    from sklearn.linear_model import Ridge

    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    local = open_executor(RunConfig("run", executor=ExecutorConfig(workers=2)), print)
    with Prefetch([1], abs) as loaded:
        reading = loaded._pool._max_workers
    return {
        "torch": torch.get_num_threads(), "cv2": cv2.getNumThreads(), "search": _Pool()._shares, "openvino":
        network(Path(sys.argv[2])), "libraries": max(pools.values()), "each local worker": local._handles[0]._threads,
        "prefetch": reading,
    }

settings = RunConfig("run")
print(json.dumps({
    "usable": usable_processors(), "computing": computing_threads(), "reading": reading_threads(),
    "predict reads with": settings.runtime.worker_count, "machine": describe_machine()["cores"], **task(settings),
}))
"""


@pytest.mark.parametrize("bound", ["affinity", "quota"])
def test_every_component_uses_one_thread_where_there_is_one_processor(bound: str, tmp_path: Path) -> None:
    """A quota cannot be set without privileges; LOKY_MAX_CPU_COUNT goes the same way in the function that counts."""
    script = tmp_path / "count.py"
    script.write_text(COUNT_THREADS, encoding="utf-8")
    variables = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    variables |= {"PYTHONPATH": str(REPOSITORY)} | ({"LOKY_MAX_CPU_COUNT": "1"} if bound == "quota" else {})
    command = [sys.executable, script, bound, tmp_path]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted == dict.fromkeys(counted, 1)


class Recorder:
    """A reporter that notes how many threads torch may use at each stage."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        import torch

        self.threads.append(torch.get_num_threads())
        yield lambda _steps: None

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


@pytest.mark.parametrize("bound", ["executor.threads", "processors"])
def test_training_keeps_to_its_threads(bound: str, small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from cvad_cli.tasks.train import TrainRequest, train

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    overrides = ["executor.threads=1"] if bound == "executor.threads" else []
    if not overrides:
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    former = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        heard = Recorder()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries' own imports, as in the command line
            train(load_config(small_config, overrides), TrainRequest(describe=False), heard)
        assert len(heard.threads) > 2
        assert set(heard.threads) == {1}
        assert torch.get_num_threads() == 3, "as it was, once the task is done"
    finally:
        torch.set_num_threads(former)


def test_threads_below_the_number_of_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = keeping_threads(lambda settings: (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "64")
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert seen(RunConfig("run")) == (1, None)
    finally:
        torch.set_num_threads(former)


def test_a_run_that_a_worker_does_by_itself_keeps_its_threads() -> None:
    settings = RunConfig("run", executor=ExecutorConfig(kind="ray", workers=4, threads=3))
    assert run_here(settings).executor == ExecutorConfig(threads=3)


def test_one_function_alone_counts_processors() -> None:
    counts = re.compile(r"cpu_count|sched_getaffinity|get_num_threads")
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("cvad_cli", "scripts")
        for path in (REPOSITORY / folder).rglob("*.py")
        if counts.search(path.read_text("utf-8"))
    }
    assert found == {"cvad_cli/config/processors.py", "cvad_cli/adapters/executors/threads.py"}
