"""Side by side with peers: what `make bench` measures. See README.md beside this file."""
