"""Side by side with peers: what `make bench` measures, and the checks of what a study claims."""
