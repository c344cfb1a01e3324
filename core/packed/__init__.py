"""Read and write the packed checkpoint, in which a pruned weight costs one bit."""
