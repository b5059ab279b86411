"""Images and paths as a config names them."""
