"""Gates: figures that a run has to reach, and its comparison with a baseline."""
