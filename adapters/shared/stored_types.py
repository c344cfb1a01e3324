"""Tell the number types that a checkpoint is stored in, and put a model back into them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ecoflap.core.disk.safetensors_header import DTYPES
from ecoflap.core.model.shapes import saved_tensors


def types_in(file: Path | None) -> dict[str, torch.dtype]:
    """Give the type of every tensor in a safetensors file, by name, without reading the numbers.

    :param file: None for a checkpoint of another format, of which nothing is known; it is taken as float32.
    """
    if file is None:
        return {}
    with safe_open(file, framework="np") as stored:  # for torch it maps the whole file, which may be more than memory
        kinds = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 - it is no mapping
    if DTYPES.keys() >= set(kinds.values()):
        return {name: DTYPES[kind] for name, kind in kinds.items()}
    with safe_open(file, framework="pt") as stored:  # torch and safetensors know types that are none of ours
        slices = {name: stored.get_slice(name) for name in kinds}
        scalars = [name for name, one in slices.items() if not one.get_shape()]
        types = {name: one[:0].dtype for name, one in slices.items() if name not in scalars}
        return types | {name: stored.get_tensor(name).dtype for name in scalars}


def take_types(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Put a model back into the types that its checkpoint is stored in, where its library reads every one as float32.

    That changes no number, as the numbers came from these types. A buffer that no checkpoint holds takes the type of
    most of the weights.
    """
    state = dict(saved_tensors(model))
    for name, tensor in state.items():
        if tensor.is_floating_point() and name in types:
            tensor.data = tensor.data.to(types[name])
    kinds = Counter(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    usual = max(kinds, key=lambda kind: kinds[kind])
    for name, buffer in model.named_buffers():
        if name not in state and buffer.is_floating_point():
            buffer.data = buffer.data.to(usual)
