"""What a refiner is given: a pruned block or the pruned model, opened for its kept weights to be trained."""

from ecoflap.core.refining.block_view import BlockView
from ecoflap.core.refining.model_view import ModelView

__all__ = ["BlockView", "ModelView"]
