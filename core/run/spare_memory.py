"""How much memory a run may spend on being quicker: half of what is free, where nothing asks to save that kind."""

import os

import torch

from ecoflap.core.machine.memory import available_memory
from ecoflap.core.preparing.prepared import Prepared


def spare_memory(prepared: Prepared) -> int:
    """Give the bytes that a run may hold beside what it needs: half of what is free, and none where it is offloaded."""
    return 0 if prepared.recipe.model.offload else _half_of_what_is_free(prepared)


def _half_of_what_is_free(prepared: Prepared) -> int:
    """Give none where blocks run on another device, whose memory is not what is counted, or where nothing tells.

    A process that has a share of the cores, as one of several that do a run or a sweep, has that share of the memory.
    All cores of the machine are counted: where this process is bound to some, others may run beside it on the rest.
    """
    if not prepared.is_on_cpu:
        return 0
    cores = max(os.cpu_count() or 1, torch.get_num_threads())
    return (available_memory() or 0) // 2 * torch.get_num_threads() // cores


def spare_for_scoring(prepared: Prepared) -> int:
    """Give the bytes that the scorer's replay may hold beside what it needs: none where it may write to weights."""
    score = prepared.recipe.score
    is_allowed = score is not None and prepared.looks_at_scores and score.scorer.options.only_reads
    return spare_memory(prepared) if is_allowed else 0


def spare_for_pruning(prepared: Prepared) -> int:
    """Give the bytes that forwards may hold which wait for layers to be pruned in their turn.

    They are what the calibration gives, as the record is: whether that may be in memory is said by ``keep``, wherever
    the weights are.
    """
    keys = prepared.recipe.calibration
    can_wait = prepared.prunes_in_turn and keys is not None and keys.keep == "memory"
    return _half_of_what_is_free(prepared) if can_wait else 0
