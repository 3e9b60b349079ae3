"""The reader that changes one token of a tiny random instance and looks which others change."""
