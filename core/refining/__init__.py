"""Trains the kept weights under masks that stay: those of a block against the dense block, or the whole model's."""
