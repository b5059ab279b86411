"""What assembly hands from one adapter to another without looking inside. For annotations: importing it loads torch."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

Network: TypeAlias = nn.Module
Tensor: TypeAlias = torch.Tensor
