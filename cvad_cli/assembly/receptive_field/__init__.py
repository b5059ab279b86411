"""The receptive field of a detector: analysis, advice, report."""
