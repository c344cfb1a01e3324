"""How much memory scoring may spend on being quicker: half of what is free, where nothing asks to save it."""

import os

import torch

from ecoflap.core.record.memory import available_memory
from ecoflap.core.run.prepared import Prepared


def spare_for_scoring(prepared: Prepared) -> int:
    """Give the bytes that the scorer's replay may hold beside what it needs.

    A process that has a share of the cores, as one of several that do a run or a sweep, has that share of the memory.

    There are none where the model is offloaded or on another device, whose memory is not what is counted here, where
    the scorer may write to weights, or where the system does not tell what is free.
    """
    recipe = prepared.recipe
    is_allowed = recipe.score is not None and prepared.looks_at_scores and recipe.score.scorer.options.only_reads
    if not is_allowed or recipe.model.offload is not None or not is_in_memory(prepared):
        return 0
    cores = max(os.cpu_count() or 1, torch.get_num_threads())
    return (available_memory() or 0) // 2 * torch.get_num_threads() // cores


def is_in_memory(prepared: Prepared) -> bool:
    """Say whether the model will be in main memory; of one that is in memory already that shows."""
    device, model = prepared.recipe.model.device, prepared.source.model
    if device == "auto" and model is not None:
        device = next(model.parameters()).device.type
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())
