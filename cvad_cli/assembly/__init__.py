"""Adapters put together from settings: what several tasks need, one ring inside them."""
