"""Make an adapter or exporter of your own: of pieces that the built-in ones share, and of abilities of models.

docs/adapters.md leads from a new model to an adapter with them.
"""

from ecoflap.adapters.hubs.description import describe, description_of
from ecoflap.adapters.hubs.hugging_face import load_processor, load_transformers_model, save_model
from ecoflap.adapters.shared.generation import generated, opening, padded_left
from ecoflap.adapters.shared.losses import mean_nll
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.views.texts import views_of_decoder
from ecoflap.core.contracts.abilities import Classifies, Compares, Generates, Generation, Matches, Said, offers
from ecoflap.core.model.source import open_source
from ecoflap.plugins.datasets.shared.image_files import read_image

__all__ = [
    "Classifies", "Compares", "Generates", "Generation", "Matches", "Said", "describe", "description_of", "find",
    "generated", "load_processor", "load_transformers_model", "matrices", "matrix_outside", "mean_nll", "member",
    "offers", "open_source", "opening", "padded_left", "read_image", "save_model", "tower_at", "views_of_decoder",
]  # fmt: skip
