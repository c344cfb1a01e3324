"""Export a finished run: write files for other runtimes, with a manifest."""
