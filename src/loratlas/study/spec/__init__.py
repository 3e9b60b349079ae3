"""A study's file: its schema, what it allows, what it tries."""
