"""Hold what several model families share: losses, texts, images, and what models of one have inside another's."""
