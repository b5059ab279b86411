"""Mathematics on arrays: no files, no torch, no clock, no global randomness."""
