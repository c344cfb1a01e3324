"""Writes files whole or not at all, reads what may come from anybody, and says why either cannot be done."""
