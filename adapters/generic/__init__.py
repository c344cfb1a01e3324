"""Adapts what no family's own adapter claims: models of transformers that are taken apart by watching them run."""
