"""Sees a model as towers, blocks and layers, finds where it comes from, and says what of it is never pruned."""
