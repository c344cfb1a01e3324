"""Offers the command line."""
