"""Say how views are written as ONNX files: what the exporter's parameters come to."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Storage:
    """Says how the pruned weights of a graph are stored.

    :param weights: ``bitmask`` packs them, those that have a pattern by it; ``packed_op`` makes linear layers products
        with packed matrices, and packs the rest; ``coo`` makes them sparse initializers; ``dense`` leaves them as they
        are.
    :param form: ``inline`` writes the nodes that unpack a weight into the graph, for runtimes that know no
        model-local functions, as OpenVINO; ``function`` writes them once, as a function.
    :param values: The type that values are stored in, float32, float16 or bfloat16, where it is narrower than the
        weight's own; they are cast to that when the model is loaded. None is the weight's own.
    :param lossy: Whether a narrower type may make a weight zero or infinite.
    :param int8: Whether matrices of products are rounded to int8, pruned or not, with a scale for each output.
    :param vocabulary_int8: Whether embeddings and heads are, pruned or not, with a scale for each row.
    """

    weights: Literal["bitmask", "packed_op", "coo", "dense"] = "bitmask"
    form: Literal["function", "inline"] = "function"
    values: torch.dtype | None = None
    lossy: bool = False
    int8: bool = False
    vocabulary_int8: bool = False

    @property
    def rounds(self) -> bool:
        """Say whether weights are rounded to int8."""
        return self.int8 or self.vocabulary_int8


FLOAT_TOLERANCE = 1e-4
"""How far an output may be off where nothing is rounded, in shares of its largest magnitude."""


@dataclass(frozen=True)
class Settings:
    """Says how a view is written.

    :param tolerance: How far an output may be from torch's, in shares of its largest magnitude; None is as usual.
    """

    storage: Storage
    opset: int
    tolerance: float | None

    @property
    def allowed(self) -> float:
        """Say how far an output may be off where no weight is in int8."""
        return FLOAT_TOLERANCE if self.tolerance is None else self.tolerance
