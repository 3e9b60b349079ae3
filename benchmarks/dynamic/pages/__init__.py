"""Results of the bench in words and tables."""
