"""Counts weights exactly, spreads the counts over groups, layers and rows, and turns them into masks."""
