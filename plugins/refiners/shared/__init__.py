"""What refiners share."""
