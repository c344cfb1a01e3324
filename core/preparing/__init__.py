"""Takes a recipe's model apart without its weights, and collects all that can be refused before these are read."""
