"""Libraries that models come from: transformers, timm, open_clip."""
