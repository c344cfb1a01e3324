"""Statistics of what layers are fed, and of the loss' gradient, by which parts score and prune."""
