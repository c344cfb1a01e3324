"""The engine: everything that is not a method. It imports none of the folders that plug into it."""
