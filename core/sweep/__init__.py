"""Runs a recipe with every combination of methods, values and seeds."""
