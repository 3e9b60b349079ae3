"""From the runs' records to what is said about an arm."""
