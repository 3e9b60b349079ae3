"""Rules that turn a run's statistics into new ranks; `registry` has them by name."""
