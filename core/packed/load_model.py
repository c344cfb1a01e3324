"""Load what is in a folder in one call: a packed export's model, and its masks or those of a run."""

import os
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ecoflap.core.contracts.adapter_answers import loaded_by
from ecoflap.core.contracts.blame import blaming, sentence_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.disk.paths import from_here
from ecoflap.core.dtypes import dtype_called
from ecoflap.core.errors import FormatError, ModelError, unknown
from ecoflap.core.kernel.library import Values
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.own_code import own_code
from ecoflap.core.model.source import is_setting, open_source
from ecoflap.core.packed.exported_folder import exported_folder
from ecoflap.core.packed.into_model import is_packed, left_packed, refuse_dense
from ecoflap.core.packed.pack_model import pack_model
from ecoflap.core.packed.packing import ATTRIBUTE, begun, warn_of_none
from ecoflap.core.packed.read_packed import masks_in
from ecoflap.core.packed.shards import locate
from ecoflap.core.packed.two_four import run_two_four
from ecoflap.core.pruning.masks import MASKS, PackedMasks, read_masks
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.named_adapter import adapter_named, refusing_misfit
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.sealing.sums import SUMS, check_sums

_PACKED: dict[str, Values] = {"packed": "exact", "packed-int8": "int8", "packed-int8a8": "int8a8"}
_WEIGHTS = ("dense", *_PACKED)
_DESCRIBING = ("*.md", "LICENSE*", "LICENCE*", "NOTICE*")
"""Names of files that tell people about a model, and that nothing is loaded from."""
_WAY_OUT = f"Restore the folder as it was; or, if it was changed on purpose, delete {SUMS}."


def load_model(
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    dtype: torch.dtype | str | None = None,
    adapter: Adapter | str | None = None,
    weights: Literal["dense", "packed", "packed-int8", "packed-int8a8"] = "dense",
    embeddings: Literal["dense", "packed", "packed-int8", "packed-int8a8"] = "dense",
) -> nn.Module:
    """Load the model that the ``safetensors`` exporter wrote, in eval mode: dense again, or run from packed weights.

    Every byte that is read is checked: the weights as they are read, and what lies beside them by the folder's
    ``SHA256SUMS``, which an export has; the model card and the licence may be edited. Beside the model one of its
    tensors is in memory at a time. The model's tokenizer or processor lies in the folder in its own library's format;
    it is read with an adapter of yours alone. :func:`load_masks` reads the masks.

    :param folder: With ``model.packed.safetensors``, or its shards and their index, and the model's configuration; or
        a run's, with one such export.
    :param dtype: A floating-point type of torch's, or its name, such as ``bfloat16``; None keeps what is stored, as
        does ``auto``.
    :param adapter: For a model whose folder does not say what it is; afterwards its ``processor`` is the model's. It
        may be named as in a recipe, such as ``llama``. By default the one that claims the folder is found.
    :param weights: ``packed`` leaves pruned matrices packed in memory, and multiplies with them so, on the CPU;
        on a GPU those that are pruned 2:4, once the model is there; a warning says why where none is.
        ``model.ecoflap_packing`` says which, and what stays dense and why. docs/kernel.md has how fast that is where.
        What an adapter's own code reads dense is packed once it is in memory.
        ``packed-int8`` rounds weights to int8 as they are read, of each ``nn.Linear`` that takes fewer bytes so, and
        in each product x to int16; ``packed-int8a8`` rounds x to int8.
    :param embeddings: How embeddings and the head are held, likewise, pruned or not: a head that is the embedding too
        is read for each token. ``packed`` keeps every weight, and a sixteenth of memory is added for the masks.
    :raises FormatError: Where a file is truncated, changed or missing.
    :raises KernelError: Where weights are to be packed and ``ECOFLAP_KERNEL`` names a path that cannot be taken here.
    :raises RegistryError: Where no adapter has the name that is given.
    :raises ModelError: Where the folder does not say which model it is of, or says what no library here can build; or
        where a weight that is to be int8 is not finite.
    """
    for where, said in (("weights", weights), ("embeddings", embeddings)):
        if said not in _WEIGHTS:
            raise ModelError(f"{where}: {unknown('way to hold weights', str(said), _WEIGHTS)}")
    if weights == "dense" and embeddings != "dense":
        raise ModelError(f"embeddings: {embeddings} goes with packed weights: say weights='packed' or in int8, too")
    kept_in = _type_of(dtype)
    elsewhere = _kind_of(device, weights, embeddings) != "cpu"
    packing = None if weights == "dense" or elsewhere else begun(_PACKED[weights], _PACKED.get(embeddings))
    source = _opened(from_here(folder))
    with nullcontext() if packing is None else left_packed(packing):
        if isinstance(adapter, str):
            model = _loaded_by_named(adapter, source, kept_in, device)
        elif adapter is None:
            model = _adapter_of(source).load(_without_processor(source), kept_in, device)
        else:
            with blaming(f"the adapter {type(adapter).__name__}, loading {source.name},"):
                model = loaded_by(adapter, source, kept_in, device)
    model = model.eval()
    if weights == "packed" and elsewhere:
        run_two_four(model)
    elif packing is not None and not hasattr(model, ATTRIBUTE):  # its adapter's own code has read the weights
        pack_model(model, packing.values, packing.embeddings)
    elif packing is not None:
        warn_of_none(packing)
    return model


def _loaded_by_named(name: str, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
    """Load a model by the adapter of a name, and say of one that is another model's that it does not fit."""
    if ":" in name:
        path, _, made = name.partition(":")
        raise ModelError(
            f"adapter: {name!r} is an import path, which is followed for recipes alone. Give the adapter itself: from "
            f"{path} import {made}, then adapter={made}()"
        )
    adapter = adapter_named(name, load_registry())
    with refusing_misfit(adapter, name, source, "adapter"), blaming(f"the adapter {name}, loading {source.name},"):
        return loaded_by(adapter, _without_processor(source), dtype, device)


def _without_processor(source: Source) -> Source:
    """Have no tokenizer or processor read by an adapter that nobody will ask for it."""
    return replace(source, with_processor=False)


def _type_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Give the type that weights are to be in; None where it is that which is stored."""
    if dtype is None or dtype == "auto":
        return None
    found = dtype_called(dtype)
    if found is None:
        raise ModelError(
            f"dtype is {dtype!r}; it is a floating-point type of torch, such as torch.bfloat16, its name, such as "
            f"bfloat16, auto, or None"
        )
    return found


def _kind_of(device: str, weights: str, embeddings: str) -> str:
    """Say what kind of device it is, on which such weights run and that is there."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"device is {device!r}; torch knows cpu, cuda and the like: {sentence_of(error)}") from error
    if weights != "dense" and kind not in ("cpu", "cuda"):
        raise ModelError(
            f"packed weights are multiplied on the CPU, or on cuda where they are 2:4, and not on {device}. Say "
            f"device='cpu', or weights='dense'."
        )
    if kind == "cuda" and (weights not in ("dense", "packed") or embeddings != "dense"):
        raise ModelError(
            f"weights in int8 and packed embeddings are multiplied on the CPU, and not on {device}. Say "
            f"weights='packed' for what is pruned 2:4, or weights='dense'."
        )
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there.get(kind, True):
        raise ModelError(f"there is no GPU here for device={device}: torch finds none")
    return kind


def load_masks(folder: str | os.PathLike[str]) -> PackedMasks:
    """Read which weights of a pruned model are kept, from a run's folder or a packed export's.

    Every byte that is read is checked. In memory the masks take one bit for each weight: a mask is unpacked each time
    it is asked for.

    :param folder: A run's, with ``masks.safetensors``; or what :func:`ecoflap.load_packed` takes.
    :return: Each mask by its weight's name in ``model.state_dict()``, True for a weight that is kept. In a packed
        export a tied weight is there under each of its names, and experts of one parameter are one mask; in a run's
        folder each expert has its own, ``experts.down_proj[3]``.
    :raises FormatError: Where the folder holds neither, or a file is truncated, changed or missing.
    """
    path = from_here(folder)
    if path.name == MASKS or (path / MASKS).is_file():
        return read_masks(path if path.name == MASKS else path / MASKS)
    if path.is_dir() and not any(is_packed(file.name) for file in path.iterdir()):
        raise FormatError(
            f"{path} holds no masks: it has neither {MASKS}, which a run writes once its model is pruned, nor a packed "
            f"file, which the exporter safetensors writes. Name the folder of a run or of such an export."
        )
    return masks_in(path)


def _adapter_of(source: Source) -> Adapter:
    """Find the adapter of a model; of one that only its own code builds, say how its weights are read."""
    try:
        return adapter_for(source, load_registry())
    except ModelError as error:
        code = own_code(source.config)
        if not code:
            raise
        raise ModelError(
            f"{source.name} is of a model that brings code of its own, which is not run here: {', '.join(code)}. If "
            f"you trust it, build the model from where its code is, with trust_remote_code=True, then "
            f"model.load_state_dict(ecoflap.load_packed({source.name!r})), and ecoflap.pack_model(model) to run it "
            f"packed."
        ) from error


def _opened(named: Path) -> Source:
    folder = exported_folder(named)
    refuse_dense(folder, [file.name for file in folder.glob("*.safetensors")])  # transformers deletes shards, too
    locate(folder)
    # Packed files check themselves, tensor by tensor, as they are read.
    check_sums(folder, _WAY_OUT, only=_may_be_read, added=lambda name: is_setting(name) and not is_packed(name))
    try:
        source = open_source(str(folder), Path.cwd())
    except ModelError as error:
        raise ModelError(
            f"{folder} holds weights, and not what model they are of ({error}) Build the model as before, then "
            f"model.load_state_dict(ecoflap.load_packed({str(folder)!r}))."
        ) from error
    return source


def _may_be_read(name: str) -> bool:
    """Say whether loading may look at a file: not at the card and the licence, which are their owner's to edit."""
    return not is_packed(name) and not any(fnmatch(name, pattern) for pattern in _DESCRIBING)
