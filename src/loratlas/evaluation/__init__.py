"""Per-token losses, and every definition of loss computed from them."""
