"""What Wanda sees of a block."""

from ecoflap import ColumnNorm


def column_norms(replay, index):
    """Run one block on all batches: the squared norms of the inputs of each of its layers, by name."""
    return {name: seen[ColumnNorm] for name, seen in replay.run(index, (ColumnNorm,)).items()}
