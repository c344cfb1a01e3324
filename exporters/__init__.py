"""Write pruned models in file formats, one to a file."""
