"""The oracle bench: which rule, of those that place adapters before training, is right? Training tells."""
