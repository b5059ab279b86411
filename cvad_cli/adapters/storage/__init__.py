"""What cvad keeps on disk, and how it is read back."""
