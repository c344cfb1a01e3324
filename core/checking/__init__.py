"""Holding an adapter against the model that it is for."""
