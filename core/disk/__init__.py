"""Files that appear whole or not at all, and sealed files whose every byte is checked as it is read."""
