"""The engine: everything that is not a method, a model family or a file format."""
