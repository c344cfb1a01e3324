"""Reads strict YAML with the place of every value, collects what is wrong with it, and writes numbers for people."""
