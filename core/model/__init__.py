"""A model seen as towers, blocks and layers; where models come from; what of them is never pruned."""
