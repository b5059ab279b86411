"""The one path from an image to its verdict and regions."""
