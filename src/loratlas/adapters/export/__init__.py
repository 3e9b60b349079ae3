"""Handing adapters over, and the check of what was handed over."""
