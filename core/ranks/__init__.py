"""Several processes of one run: which batches and layers are whose, and what they tell each other."""
