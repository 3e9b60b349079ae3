"""Faults of a LoraConfig that can be seen before any training: names that match nothing, or more than was meant."""
