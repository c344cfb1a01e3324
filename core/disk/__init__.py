"""Writes files that appear whole or not at all, and sealed ones, whose every byte is checked as it is read."""
