"""Holds a scorer to leaving the weights as they were: scores that come after, masks and measures would be of others."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor, nn

from ecoflap.core.errors import ModelError, first_of
from ecoflap.core.guards.left_as_given import model_watched
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.planning.scores import folder_of
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.sealing.sealed import flat

_CURE = (
    "Have it move weights within `with replay.perturbed(layer, delta):`, after which they are the same bits again, or "
    "put a copy back; and take its hooks off: handle.remove(). Its scores are not kept; a model in memory has to be "
    "loaded anew"
)


@contextmanager
def left_alone(
    scorer: str,
    model: nn.Module,
    layers: Sequence[Layer],
    path: Path,
    ranks: Ranks,
    refuse_changed: Callable[[Ranks], None],
    *,
    is_on_disk: bool,
) -> Iterator[None]:
    """Refuse a scorer behind which a model is not, bit for bit and hook for hook, what it was before it was asked.

    Meanwhile it may write to layers: they are looked at when all is done, by a checksum of each parameter. PyTorch's
    own count of writes would tell less, for it knows nothing of ``weight.data``, and what is put back is no change.

    :param path: The file of its scores, which is deleted then: a run that goes on would take them for good ones.
    :param refuse_changed: Raises where files that weights are mapped from have changed: then it was not the scorer.
    :param is_on_disk: Whether weights stay in their files: of others than layers the small ones are read then.
    :raises ModelError: With what differs.
    """
    before, of_layers = _checksums(layers), {id(layer.parameter) for layer in layers}
    changed_since = model_watched(model, is_on_disk=is_on_disk, besides=of_layers)
    yield
    written = [name for name, checksum in _checksums(layers).items() if checksum != before[name]]
    found = [*(f"{name} was written into" for name in written), *changed_since()]
    changes = list(dict.fromkeys(change for some in ranks.gather(found) for change in some))
    if not changes:
        return
    refuse_changed(ranks)
    ranks.at_first(lambda: path.unlink(missing_ok=True))
    ranks.at_first(lambda: shutil.rmtree(folder_of(path), ignore_errors=True))
    raise ModelError(
        f"the scorer {scorer} has left the model otherwise than it was given, so that all that comes after it would be "
        f"of another one: {first_of(changes)}. {_CURE}"
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
