"""Read and write models with the libraries they come from: transformers, timm, open_clip."""
