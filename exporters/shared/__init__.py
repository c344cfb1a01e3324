"""What several file formats share."""
