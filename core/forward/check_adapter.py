"""Whether an adapter says the truth about its model: what a new one is held to before anything is pruned with it."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.forward.capture import without_fast_path
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.statistics import ColumnNorm
from ecoflap.core.model.anatomy import Anatomy


def check_adapter(adapter: Adapter, model: nn.Module, samples: Sequence[Sample]) -> Anatomy:
    """Compare what an adapter declares with what its model does.

    No matrix of a block is missing; each is fed tokens of the tower it reads, and no padding; the loss from every block
    on is the whole forward's; every matrix has a gradient. Small models and a few samples of unequal length are enough.

    :return: The anatomy, with all the adapter names.
    :raises ModelError: With everything that is wrong.
    """
    towers = adapter.towers(model)
    anatomy = Anatomy.of(towers, adapter.layers, {tower.name for tower in towers})
    batch = adapter.collate(model, samples)
    replay = Replay(model, adapter, [batch], anatomy=anatomy)
    problems = list(_missing(anatomy))
    try:
        norms = _walked(replay, problems)
        problems += _padding(replay, samples, norms)
        problems += _without_gradient(replay)
    except EcoflapError as error:
        problems += error.problems
    if problems:
        raise ModelError(*problems)
    return anatomy


def _missing(anatomy: Anatomy) -> Iterator[str]:
    listed = {id(layer.weight) for _, layer in anatomy.layers()}
    for block in anatomy.blocks:
        for path, module in block.module.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 2 and id(parameter) not in listed and not isinstance(module, nn.Embedding):
                    yield f"{'.'.join(filter(None, (block.name, path, name)))} is a matrix that layers() does not list"


def _walked(replay: Replay, problems: list[str]) -> Mapping[str, Tensor]:
    """Walk the blocks and return each layer's squared input norms; a loss that is off is added to ``problems``."""
    norms: dict[str, Tensor] = {}
    with torch.no_grad(), without_fast_path():
        plain = float(replay.adapter.loss(replay.model, replay.batches[0]))
    for index, block in enumerate(replay.blocks):
        loss = float(replay.loss(index))
        if loss != plain:
            problems.append(f"the loss from {block.name} on is {loss}, and that of the plain forward {plain}")
        norms |= {name: seen[ColumnNorm].squared for name, seen in replay.run(index, (ColumnNorm,)).items()}
        replay.advance(index)
    return norms


def _padding(replay: Replay, samples: Sequence[Sample], together: Mapping[str, Tensor]) -> Iterator[str]:
    """Say where padding was seen: samples alone have none, so their statistics must add up to those of the batch."""
    batches: list[Batch] = [replay.adapter.collate(replay.model, [sample]) for sample in samples]
    alone = Replay(replay.model, replay.adapter, batches, anatomy=replay.anatomy)
    for index in range(len(alone.blocks)):
        try:
            found = alone.run(index, (ColumnNorm,))
        except DataError:
            return  # the last block needs the whole forward, and a contrastive loss takes no sample alone
        for name, seen in found.items():
            if not torch.allclose(seen[ColumnNorm].squared, together[name], rtol=1e-3):
                yield f"{name}: its inputs are others in a padded batch than alone; tokens() or a mask is wrong"
        alone.advance(index)


def _without_gradient(replay: Replay) -> Iterator[str]:
    seen: set[str] = set()
    replay.gradients(lambda layer, gradient: seen.add(layer.name))
    for _, layer in replay.anatomy.layers():
        if layer.name not in seen:
            yield f"{layer.name}: the loss does not depend on it"
