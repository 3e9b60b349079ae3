"""The reader that observes one forward pass on the meta device and follows where every tensor comes from."""
