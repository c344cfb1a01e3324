"""Write TorchScript files in which a pruned weight costs one bit."""
