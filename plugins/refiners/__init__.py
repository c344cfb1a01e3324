"""Holds the built-in refiners, one to a file; registry.yaml says which are loaded."""
