"""Methods, one to a file: scorers, allocators, pruners, datasets, evaluators, observers."""
