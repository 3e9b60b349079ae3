"""What the runs of a study need before the first one starts: plans, rows, fleet sizes."""
