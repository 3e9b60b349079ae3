"""Adapters as engines read them: what each one makes of a folder, and the form in which it reads it right."""
