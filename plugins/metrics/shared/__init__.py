"""Holds what those share that ask a metric."""
