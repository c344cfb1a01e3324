"""Holds the built-in metrics, one to a file; registry.yaml says which are loaded."""
