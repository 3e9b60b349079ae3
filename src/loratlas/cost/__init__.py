"""What a step costs: a dry run without weights, counted operations, seconds calibrated on this machine."""
