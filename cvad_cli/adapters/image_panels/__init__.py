"""Images with something drawn on them: panels, overlays, thumbnails."""
