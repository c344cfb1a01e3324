"""Holds the built-in observers, one to a file; registry.yaml says which are loaded."""
