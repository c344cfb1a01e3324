"""What an adapter's save has left in a folder is found again: by name in its files, or by the adapter's own load."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.kept_processor import processor_kept
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.disk.write_errors import explained
from ecoflap.core.errors import EcoflapError, FormatError, RunError
from ecoflap.core.model.parameter_masks import parameter_and_part

_PICKLED = (".pt", ".pth", ".bin")
"""Endings of files that ``torch.save`` writes."""
_WEIGHTS = (".safetensors", *_PICKLED)

_SAVED = (
    "An adapter's save leaves each weight under the name that it has in state_dict(), in a file *.safetensors, or by "
    f"torch.save(model.state_dict(), …) in one of {', '.join(f'*{ending}' for ending in _PICKLED)}; or else a folder "
    "that the adapter's own load reads."
)


def try_to_save(
    adapter: Adapter,
    model: nn.Module,
    layers: Iterable[str],
    folder: Path,
    reload: Callable[[], nn.Module],
    target: Path | None = None,
) -> None:
    """Have an adapter save a model, and check that the parameters of these layers are there bit by bit.

    :param folder: An empty one.
    :param reload: Loads the folder's model; used for parameters that none of its files has under their name.
    :param target: Where the model is going to be saved, for messages.
    :raises EcoflapError: Where it cannot be saved, or one is not found again.
    """
    who = f"the adapter {type(adapter).__name__}, saving the model for a trial,"
    with blaming(who), explained(target or folder, folder):
        adapter.save(model, folder)
    state, names = model.state_dict(), {parameter_and_part(layer)[0] for layer in layers}
    with processor_kept(adapter):
        for name, saved in read_back(folder, names, reload):
            check_equal(folder, name, saved, state[name])


def read_back(folder: Path, names: Iterable[str], reload: Callable[[], nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names as the folder has them, from its files or from the model that is loaded of it.

    :raises FormatError: Where they are found in neither way, or the folder has a link to weights that lie elsewhere.
    :raises RunError: Where the disk is full on which a model that stays in its files is put together.
    """
    links = sorted(path.name for ending in _WEIGHTS for path in folder.glob(f"*{ending}") if path.is_symlink())
    if links:
        raise FormatError(f"{folder}: a link and no file: {', '.join(links)}. An adapter's save writes weights there")
    left = set(names)
    for name, saved in stored(folder, left):
        left.discard(name)
        yield name, saved
    if not left:
        return
    try:
        again = reload().state_dict()
    except RunError:  # as of a full disk, on which weights are put together to be read: what was saved is not to blame
        raise
    except EcoflapError as error:
        why = f"as a model it is not read: {' '.join(error.problems)}"
        raise FormatError(f"{folder}: no file there has {min(left)} under that name, and {why} {_SAVED}") from error
    if lost := sorted(left - again.keys()):
        raise FormatError(f"{folder}: {lost[0]} is not among what was saved. {_SAVED}")
    yield from ((name, again[name]) for name in sorted(left))


def stored(folder: Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names, as far as the folder's files have them under their names."""
    kinds = (("*.safetensors",), [f"*{ending}" for ending in _PICKLED])
    for endings in kinds:
        for path in sorted(path for ending in endings for path in folder.glob(ending)):
            yield from stored_in(path, names)


def stored_in(path: Path, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names that a file of weights has; none of a file of another kind."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in sorted(set(names).intersection(file.keys())):
                yield name, file.get_tensor(name)
    elif path.suffix in _PICKLED:
        weights = _pickled(path)
        for name in sorted(set(names).intersection(weights)):
            yield name, weights[name]


def check_equal(folder: Path, name: str, saved: Tensor, weight: Tensor) -> None:
    """Refuse a tensor that a folder has with other bits than a weight, or of another type."""
    if saved.dtype != weight.dtype or not torch.equal(saved.cpu(), weight.cpu()):
        raise FormatError(f"{folder}: {name} reads back other than it was written")


def _pickled(path: Path) -> Mapping[str, Tensor]:
    """Read what ``torch.save`` has written of tensors by their names; nothing where it is something else."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError):  # another kind of file has such an ending too
        return {}
    found = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else {}  # as LAVIS keeps it
    return {name: one for name, one in found.items() if isinstance(one, Tensor)} if isinstance(found, Mapping) else {}
