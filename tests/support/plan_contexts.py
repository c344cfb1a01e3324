"""What a part is asked for problems with, in tests of a part whose answer depends on little of it."""

from typing import Any

from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.model.anatomy import Anatomy


def context(
    recipe: Any = None, anatomy: Anatomy | None = None, adapter: Adapter | None = None, model: nn.Module | None = None
) -> PlanContext:
    """Make a context of what is given, and otherwise of a model without towers and of no recipe."""
    return PlanContext(recipe, anatomy or Anatomy((), {}), adapter or LlamaAdapter(), model or nn.Identity())
