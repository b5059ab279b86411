"""Frozen networks: OpenVINO gives what torch gives, and tells no one that it was used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvad_cli.adapters.backbones import load_backbone
from cvad_cli.adapters.runtime_openvino import frozen_networks


def test_openvino_and_torch_agree_to_the_precision_that_is_used() -> None:
    pytest.importorskip("openvino")
    network = load_backbone("resnet10t", ("layer1", "layer2"), "random", seed=0).network
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = frozen_networks._through_torch(network, "cpu")(images)
    found = frozen_networks._through_openvino(network, 64)(images)
    coarse = frozen_networks.processor_has_bf16()
    for mine, reference in zip(found, expected, strict=True):
        assert mine.shape == reference.shape
        error = (mine - reference).norm() / reference.norm()
        assert error < (2e-2 if coarse else 1e-4)


def test_converting_a_network_sends_nothing_and_leaves_no_trace_at_home(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    script = (
        "import socket, torch\n"
        "def refuse(*arguments, **keywords):\n"
        "    raise SystemExit('a connection was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from cvad_cli.adapters.runtime_openvino.frozen_networks import feature_function\n"
        "network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())\n"
        "class Network(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layers = network\n"
        "    def forward(self, x):\n"
        "        return [self.layers(x)]\n"
        "feature_function(Network(), 32, 'cpu')(torch.zeros(1, 3, 32, 32))\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    # On a build server OpenVINO's telemetry is off by itself: the test must not be one.
    keep = {key: value for key, value in os.environ.items() if key not in {"CI", "TF_BUILD", "JENKINS_URL"}}
    subprocess.run([sys.executable, "-c", script], check=True, env={**keep, "HOME": str(home)}, timeout=300)
    assert list(home.rglob("*")) == []
