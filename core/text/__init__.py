"""Strict YAML with the place of every value, problems that are told all at once, and numbers as people read them."""
