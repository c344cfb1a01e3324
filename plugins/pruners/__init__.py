"""Holds the built-in pruners, one to a file; registry.yaml says which are loaded."""
