"""An adapter's folder: written, read without a model, loaded onto a live base."""
