"""What a detector can see: analysis, advice, report."""
