"""A run from a recipe to a report."""
