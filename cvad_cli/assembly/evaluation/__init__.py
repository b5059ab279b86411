"""How well a detector decides: judging test images, charts, the report."""
