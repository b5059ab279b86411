"""Distilling a teacher network from ImageNet backbones."""
