"""Types that assembly passes from one adapter to another. For annotations only: importing this file loads torch."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

Network: TypeAlias = nn.Module
Tensor: TypeAlias = torch.Tensor
