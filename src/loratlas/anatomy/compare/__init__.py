"""What compares the readers: the role of each matrix, reviewed overrides, and the crosscheck."""
