"""Watch a model run on small inputs, and take it apart by that: blocks, layers, towers, and what is left out."""
