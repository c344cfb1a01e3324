"""Holds the built-in datasets, one to a file; registry.yaml says which are loaded."""
