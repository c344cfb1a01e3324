"""Holds a scorer to leaving the weights as they were: scores that come after, masks and measures would be of others."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.planning.scores import folder_of
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.sealing.sealed import flat


@contextmanager
def left_alone(
    scorer: str,
    layers: Sequence[Layer],
    path: Path,
    ranks: Ranks,
    refuse_changed: Callable[[Ranks], None],
) -> Iterator[None]:
    """Refuse a scorer behind which a layer's weights are not, bit for bit, what they were before it was asked.

    Meanwhile it may write to them: it is looked at when all is done, by a checksum of each parameter. PyTorch's own
    count of writes would tell less, for it knows nothing of ``weight.data``, and what is put back is no change.

    :param path: The file of its scores, which is deleted then: a run that goes on would take them for good ones.
    :param refuse_changed: Raises where files that weights are mapped from have changed: then it was not the scorer.
    :raises ModelError: With the first layer that differs.
    """
    before = _checksums(layers)
    yield
    found = [name for name, checksum in _checksums(layers).items() if checksum != before[name]]
    changed = [name for some in ranks.gather(found) for name in some]
    if not changed:
        return
    refuse_changed(ranks)
    ranks.at_first(lambda: path.unlink(missing_ok=True))
    ranks.at_first(lambda: shutil.rmtree(folder_of(path), ignore_errors=True))
    others = f" and of {len(set(changed)) - 1} other layers" if len(set(changed)) > 1 else ""
    raise ModelError(
        f"the scorer {scorer} has left the weights of {changed[0]}{others} other than they were, so that all that "
        f"comes after it would be of another model. Have it move them within `with replay.perturbed(layer, delta):`, "
        f"after which they are the same bits again, or put a copy back. Its scores are not kept; a model in memory has "
        f"to be loaded anew"
    )


def _checksums(layers: Sequence[Layer]) -> dict[str, int]:
    """Give the CRC-32 of each layer's parameter, in the order of the layers; parts of one parameter share it."""
    sums: dict[int, int] = {}
    for layer in layers:
        if id(layer.parameter) not in sums:
            sums[id(layer.parameter)] = _checksum(layer.parameter)
    return {layer.name: sums[id(layer.parameter)] for layer in layers}


def _checksum(parameter: Tensor) -> int:
    if parameter.is_meta:  # a scorer took its numbers away
        return -1
    return crc32(flat(parameter.data).view(torch.uint8).numpy().data)
