"""File formats, one to a file."""
