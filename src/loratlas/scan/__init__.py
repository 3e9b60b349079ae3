"""From short trials and signals to scores, and from scores to a plan."""
