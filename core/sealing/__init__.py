"""Seals what is kept: files of which every byte is checked as they are read, and of which what differs is told."""
