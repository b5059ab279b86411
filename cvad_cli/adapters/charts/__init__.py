"""PNG files by matplotlib: curves of an evaluation, receptive fields, speed."""
