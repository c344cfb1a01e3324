"""Scorers, allocators, pruners, datasets, evaluators and observers, one to a file; a kind may have a shared folder."""
