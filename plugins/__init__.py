"""Holds scorers, allocators, pruners, datasets, evaluators and observers, one to a file, a kind to a folder."""
