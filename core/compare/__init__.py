"""Puts finished runs side by side: as data, as tables and as a page."""
