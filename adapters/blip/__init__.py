"""Adapt BLIP of transformers, each of whose three classes is a model of its own: captions, answers, retrieval."""
