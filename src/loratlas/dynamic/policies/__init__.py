"""Rules that turn a run's statistics into new ranks; `known_policies` has them by name."""
