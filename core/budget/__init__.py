"""Exact counts of weights: spread over groups, layers and rows, and turned into masks."""
