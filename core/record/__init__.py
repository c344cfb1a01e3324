"""Keeps a run folder: writes what a run leaves there, reads it back, and finds what another run may take over."""
