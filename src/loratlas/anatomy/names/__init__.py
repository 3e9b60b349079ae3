"""The reader that looks at names: words of modules and leaves, borne out by shapes."""
