"""What holds of the study that this project comes from: eight claims, the evidence on each, and a verdict."""
