"""Built-in allocators, one to a file; registry.yaml says which are loaded."""
