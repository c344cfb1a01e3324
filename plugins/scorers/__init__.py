"""Holds the built-in scorers, one to a file; registry.yaml says which are loaded."""
