"""Loads plugins and finds parts by name."""
