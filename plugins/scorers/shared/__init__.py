"""Holds what scorers share."""
