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
    """

    weights: Literal["bitmask", "packed_op", "coo", "dense"] = "bitmask"
    form: Literal["function", "inline"] = "function"
    values: torch.dtype | None = None
    lossy: bool = False


@dataclass(frozen=True)
class Settings:
    """Says how a view is written.

    :param tolerance: How far an output may be from torch's, in shares of its largest magnitude.
    """

    storage: Storage
    opset: int
    tolerance: float
