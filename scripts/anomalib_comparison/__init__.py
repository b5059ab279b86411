"""cvad against anomalib's own inferencers: a tool of this repository, not part of the package that is installed."""
