"""Read all that a folder of ours holds against what was written."""
