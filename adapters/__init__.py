"""Describe model families, one to a file: where their blocks are, what feeds them, how they are saved."""
