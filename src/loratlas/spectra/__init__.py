"""Saved adapters as spectra: how large the update of each site is, how many directions it uses, which to keep."""
