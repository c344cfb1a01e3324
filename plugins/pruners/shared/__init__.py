"""Holds what several pruners need."""
