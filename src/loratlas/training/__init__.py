"""Training a run: see `loop.fit`."""
