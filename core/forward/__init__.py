"""Running a model's own forward from any block on, and seeing what its layers see."""
