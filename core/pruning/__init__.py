"""The two steps: scores and a plan for the whole model, then masks block by block."""
