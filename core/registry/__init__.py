"""Loading plugins and finding parts by name."""
