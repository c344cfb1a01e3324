"""Holds the built-in allocators, one to a file; registry.yaml says which are loaded."""
