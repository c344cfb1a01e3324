"""What several model families share: losses, texts, images, and what models of one family have inside another's."""
