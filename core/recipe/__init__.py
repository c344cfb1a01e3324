"""A recipe: read, overridden, checked whole, and kept as frozen values."""
