"""From a bundle on disk to the engine that serves it."""
