"""Trace one view with packed weights in the places of the pruned ones, and write it without paths of this machine.

A trace records every use of a weight, whatever uses it: a linear layer, an attention that takes it apart, an embedding
that is tied to it. The model is put back as it was, to the last attribute.
"""

import inspect
import io
import json
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.records import View
from ecoflap.core.disk.whole_files import whole_file
from ecoflap.core.errors import ModelError
from ecoflap.exporters.torchscript.alone import named_alone
from ecoflap.exporters.torchscript.functions import forwards_only
from ecoflap.exporters.torchscript.store import packed, quiet

DESCRIPTION = "ecoflap.json"
FOLDER = "model"
_REGISTERED = ("_parameters", "_buffers", "_modules")


class Written(NamedTuple):
    """Says what is in a file.

    :param used: The ``id`` of each parameter that the view uses.
    :param packed: The ``id`` of each packed parameter, in the order of the file's ``weights``; those that the view does
        not use are among them.
    """

    used: frozenset[int]
    packed: tuple[int, ...]


class _Slot(NamedTuple):
    """Says where a packed weight belongs.

    :param key: The ``id`` of the parameter it stands for.
    """

    module: nn.Module
    name: str
    key: int
    store: nn.Module


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Undo at the end whatever is set, removed or cached on the modules inside; tensors must not be written to."""
    before = [
        (inner, dict(vars(inner)), {key: dict(vars(inner)[key]) for key in _REGISTERED}) for inner in module.modules()
    ]
    try:
        yield
    finally:
        for inner, attributes, registered in before:
            vars(inner).clear()
            vars(inner).update(attributes)
            for key, content in registered.items():
                vars(inner)[key].clear()
                vars(inner)[key].update(content)


@contextmanager
def to_be_run(module: nn.Module) -> Iterator[None]:
    """Hold a module in eval mode and without ``requires_grad``, as it is in a file.

    On that flag it depends how torch multiplies, and so how it rounds.
    """
    with unchanged(module), torch.no_grad():
        _replace(module.eval(), ())
        yield


def write_view(path: Path, view: View, pruned: Collection[int]) -> Written:
    """Trace a view, and write it.

    :param pruned: The ``id`` of each parameter that is to be stored packed.
    :raises ModelError: Where the model cannot be traced.
    """
    ids = {name: id(one) for name, one in view.module.named_parameters(remove_duplicate=False)}
    with unchanged(view.module), torch.no_grad(), quiet(), named_alone() as among:
        slots = _replace(view.module.eval(), pruned)
        order = tuple(dict.fromkeys(slot.key for slot in slots))
        ids = {f"view.{name}": key for name, key in ids.items()}
        ids |= {f"weights.{at}.weight": key for at, key in enumerate(order)}
        traced = _traced(view, slots, among)
        fetched = _fetched(traced)
        _empty_others(traced, fetched)
        with whole_file(path) as temporary:
            _write(temporary, traced, view)
    return Written(frozenset(ids[name] for name in fetched if name in ids), order)


class EcoflapView(nn.Module):
    """Is a view that puts its unpacked weights into their modules before it runs."""

    def __init__(self, view: nn.Module, slots: Sequence[_Slot]) -> None:
        super().__init__()
        self.view = view
        self._slots = tuple(slots)
        self._stores = {slot.key: slot.store for slot in slots}
        self.weights = nn.ModuleList(self._stores.values())

    def fetch(self) -> None:
        fetched = {key: store() for key, store in self._stores.items()}
        for slot in self._slots:
            vars(slot.module)[slot.name] = fetched[slot.key]


def _replace(module: nn.Module, pruned: Collection[int]) -> list[_Slot]:
    """Take pruned parameters out of their modules, and ``requires_grad`` from the others, as those in a file have none.

    :return: The places of the pruned ones.
    """
    stores: dict[int, nn.Module] = {}
    others: dict[int, nn.Parameter] = {}
    slots: list[_Slot] = []
    found = [
        (inner, name, one) for inner in module.modules() for name, one in inner._parameters.items() if one is not None
    ]
    for inner, name, parameter in found:
        key = id(parameter)
        if key in pruned:
            store = stores.get(key) or stores.setdefault(key, packed(parameter))
            slots.append(_Slot(inner, name, key, store))
            inner._parameters.pop(name, None)
        else:
            others.setdefault(key, nn.Parameter(parameter.detach(), requires_grad=False))
            inner._parameters[name] = others[key]
    return slots


def _traced(view: View, slots: Sequence[_Slot], among: Mapping[str, Any]) -> Any:
    module = EcoflapView(view.module, slots).eval()
    _name_inputs(module, list(view.inputs))
    try:
        with forwards_only():
            return torch.jit.trace(module, tuple(view.inputs.values()), check_trace=False, **among)
    except Exception as error:
        raise ModelError(
            f"view {view.name!r} cannot be traced by torch.jit: {type(error).__name__}: {error}. Name the views to "
            "export with `views: […]`, or export with `onnx`, `safetensors` or `hugging_face`."
        ) from error


def _name_inputs(module: EcoflapView, names: Sequence[str]) -> None:
    """Give a module a ``forward`` whose arguments have the view's names: torch writes them into the file."""

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        module.fetch()
        outputs: tuple[Tensor, ...] = module.view(*inputs)
        return outputs

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter(name.replace(".", "_"), kind) for name in names]
    signed: Any = forward
    signed.__signature__ = inspect.Signature(arguments)
    vars(module)["forward"] = signed


def _fetched(traced: Any) -> set[str]:
    """Give the path of each attribute that the traced graph reads."""
    paths: dict[str, str] = {}
    blocks = [traced.inlined_graph]
    while blocks:
        for node in blocks.pop().nodes():
            blocks.extend(node.blocks())
            if node.kind() == "prim::GetAttr" and node.output().uses():
                above = paths.get(node.input().debugName())
                paths[node.output().debugName()] = f"{above}.{node.s('name')}" if above else node.s("name")
    return set(paths.values())


def _empty_others(traced: Any, fetched: Collection[str]) -> None:
    """Empty the tensors that a view has no use for, such as the text's half of a Q-Former that reads an image."""
    for path, module in traced.named_modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if (f"{path}.{name}" if path else name) not in fetched:
                setattr(module, name, nn.Parameter(tensor.new_empty(0), requires_grad=False))


_LEFT_OUT = (".debug_pkl", "/.data/serialization_id")
"""Of a TorchScript archive: stack traces, and a checksum over them too, which no reader needs."""


def _write(path: Path, traced: Any, view: View) -> None:
    """Write what torch would, without what only helps to debug: that holds paths of this machine's files.

    torch writes to memory here, because it ends the whole process where it runs out of disk.
    """
    described = {"view": view.name, "inputs": list(view.inputs), "outputs": view.outputs, "dynamic": view.dynamic}
    buffer = io.BytesIO(traced.save_to_buffer(_extra_files={DESCRIPTION: json.dumps(described, indent=1)}))
    with zipfile.ZipFile(buffer) as made, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for entry in made.infolist():
            if not entry.filename.endswith(_LEFT_OUT) and "/traced_inputs" not in entry.filename:
                inside = zipfile.ZipInfo(f"{FOLDER}/{entry.filename.partition('/')[2]}")
                with made.open(entry) as read, file.open(inside, "w", force_zip64=True) as written:
                    shutil.copyfileobj(read, written, 1 << 20)
