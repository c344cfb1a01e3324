"""Exports of a finished run: files for other runtimes, with a manifest."""
