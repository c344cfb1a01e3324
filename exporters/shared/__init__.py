"""Hold what several file formats share."""
