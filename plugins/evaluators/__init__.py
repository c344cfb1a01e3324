"""Holds the built-in evaluators, one to a file; registry.yaml says which are loaded."""
