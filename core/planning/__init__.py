"""The coarse step: scores of a whole model, and the plan that an allocator makes of them."""
