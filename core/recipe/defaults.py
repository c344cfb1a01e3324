"""Name the parts that stand where a recipe names none: the only ones that the engine has the names of.

They come with ecoflap, and are found in the registry like any other; where they are off, a recipe has to name its own.
"""

from collections.abc import Mapping

from ecoflap.core.contracts.records import ScoreKind

EVEN_ALLOCATOR = "uniform"
"""Allocates where nothing is scored, or a pattern has fixed every budget already."""

ALLOCATORS: Mapping[ScoreKind, str] = {"number": "ecoflap", "curve": "marginal", "weights": "threshold"}
"""Allocate by scores, by the kind of these."""

PRUNED_ANYHOW: Mapping[str, object] = {"sparsity": 0.5, "prune": "magnitude"}
"""The keys of a recipe that stand for what pruned a model where that is gone: no recipe is without them."""
