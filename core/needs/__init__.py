"""What a run takes, in memory and on disk, predicted before weights or data are read."""
