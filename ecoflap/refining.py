"""What a refiner is given: a pruned block, a sub-block or the model, opened for its kept weights to be trained."""

from ecoflap.core.refining.block_view import BlockView
from ecoflap.core.refining.model_view import ModelView
from ecoflap.core.refining.subblock_view import SubBlockView

__all__ = ["BlockView", "ModelView", "SubBlockView"]
