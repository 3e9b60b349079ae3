"""Placement decided inside a run: what its steps say about its sites, what follows from it, and ranks that move."""
