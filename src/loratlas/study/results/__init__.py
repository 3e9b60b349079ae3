"""What a study measured: estimates, findings, side metrics, as plain data."""
