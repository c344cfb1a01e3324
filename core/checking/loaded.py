"""What an adapter has loaded is what files hold, in the type that was asked for.

A load that passes over names leaves random weights without a word, and one that passes over ``dtype`` twice the memory.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ecoflap.core.checking.saved import stored_in
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import first_of

_LAYERS = 8
"""So many layers of a file are looked at: a load that reads none has no single one right."""
_NUMBERS = 4096
"""So many numbers of each are compared."""
_ALIKE = 0.5
"""The least cosine between numbers that are the same but for a rounding, a scale or a small change added; that of
others is within 0.1 or so of 0."""


def why_unread(adapter: str, files: Iterable[Path], state: Mapping[str, Tensor], names: Collection[str]) -> str | None:
    """Say that no layer of a model is near what the files that it is of have under the layer's name.

    None where any is, or where files have none of the names, as those of a family that has others on the disk.

    :param adapter: Its name, for the sentence.
    :param state: The model's ``state_dict()``.
    :param names: Of parameters that layers are.
    """
    others: dict[str, Path] = {}
    for file in files:
        with suppress(SafetensorError):  # of a file that the adapter has read nothing from
            for name, saved in islice(stored_in(file, names), _LAYERS):
                if name in state and saved.shape == state[name].shape:
                    if _is_near(saved, state[name]):
                        return None
                    others.setdefault(name, file)
    if not others:
        return None
    name, file = next(iter(others.items()))
    return (
        f"the adapter {adapter} has loaded other numbers than {file} holds: {name} has none of its own there, nor any "
        f"of the {len(others)} layers that were looked at. A load that passes over names, as load_state_dict does with "
        f"strict=False, leaves them random, and others in each process. Where weights are turned or merged on the way "
        f"this is as it should be"
    )


def why_of_another_type(
    adapter: str, asked: torch.dtype | None, state: Mapping[str, Tensor], names: Collection[str]
) -> str | None:
    """Say that no layer has the type that weights were to be loaded in; None where any has, or none was asked for.

    :param adapter: Its name, for the sentence.
    :param state: The model's ``state_dict()``.
    :param names: Of parameters that layers are.
    """
    found = {state[name].dtype for name in names if name in state}
    if asked is None or not found or asked in found:
        return None
    loaded = first_of(sorted(map(dtype_name, found)))
    return (
        f"the adapter {adapter} was asked for weights in {dtype_name(asked)} and has loaded them in {loaded}, in "
        f"which they are pruned and saved. Its load should heed the `dtype` it is given"
    )


def _is_near(saved: Tensor, loaded: Tensor) -> bool:
    one, other = (each.detach().flatten()[:_NUMBERS].to("cpu", torch.float32) for each in (saved, loaded))
    lengths = float(one.norm() * other.norm())
    return abs(float(one @ other)) >= _ALIKE * lengths if lengths else not (one.any() or other.any())
