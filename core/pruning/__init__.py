"""The fine step: masks block by block, and the weights that are kept under them."""
