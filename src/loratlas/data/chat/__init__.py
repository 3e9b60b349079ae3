"""Chat templates: bounded, given what they take, and asked which of their characters are answers."""
