"""What a cell of a feature map can see: the recursion, graphs of layers, and what that means for defects."""

from __future__ import annotations
