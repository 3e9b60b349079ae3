"""One class per engine: its rules for an adapter, from its own sources."""
