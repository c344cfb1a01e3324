"""Have transformers leave weights in files, and map them from there.

Its own way to a model that is larger than memory is accelerate's, which moves weights in and out around each module's
forward. Of it only the list is taken that says where each weight is: which file, under which name, and for what
transformers makes of several weights, such as the experts of a layer, a file that it writes while it loads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from packaging.version import Version
from torch import Tensor, nn

from ecoflap.adapters.hubs.kept_in_float32 import is_kept_in_float32
from ecoflap.core.disk.write_errors import explained
from ecoflap.core.errors import ModelError
from ecoflap.core.model.mapped_weights import MappedFile, MappedWeights, Place


def arguments_for(mapped: MappedWeights) -> dict[str, Any]:
    """Give the arguments of ``from_pretrained`` by which all weights stay in files.

    :raises ModelError: Where this version cannot, or accelerate is not installed, without which it refuses.
    """
    import transformers

    if Version(transformers.__version__).major < 5:
        raise ModelError(f"model.offload: disk needs transformers 5; this is {transformers.__version__}")
    if find_spec("accelerate") is None:
        raise ModelError("model.offload: disk needs accelerate: pip install 'ecoflap[offload]'")
    mapped.scratch.mkdir(parents=True, exist_ok=True)
    return {"device_map": {"": "disk"}, "offload_folder": str(mapped.scratch)}


@contextmanager
def places_told(mapped: MappedWeights | None) -> Iterator[dict[str, Any]]:
    """Take the list of places while a model is loaded inside, in place of moving its weights around forwards.

    :param mapped: None where weights are read into memory, and nothing is told.
    :raises RunError: Where what the library makes of several weights cannot be written.
    """
    places: dict[str, Any] = {}
    if mapped is None:
        yield places
        return
    accelerate = import_module("transformers.integrations.accelerate")
    scratch, save_file, list_places = mapped.scratch, accelerate.save_file, accelerate.accelerate_disk_offload

    def find(model: Any, folder: Any, files: Any, device_map: Any, index: Any, weight_mapping: Any) -> Any:
        return list_places(model, folder, files, device_map, _by_headers(files) or index, weight_mapping)

    def take(model: Any, quantizer: Any, device_map: Any, folder: Any, index: Mapping[str, Any], *_: Any) -> None:
        places.update(index)

    def write(weights: Mapping[str, Tensor], file: str) -> None:
        with explained(scratch, Path(file)):
            save_file(weights, file)

    with (
        patch("transformers.modeling_utils.accelerate_disk_offload", find),
        patch("transformers.modeling_utils.accelerate_dispatch", take),
        patch("transformers.modeling_utils.safe_open", _Opened),
        patch("transformers.integrations.accelerate.safe_open", _Opened),
        patch("transformers.integrations.accelerate.save_file", write),
    ):
        yield places


def _by_headers(files: list[str] | None) -> dict[str, Any] | None:
    """Give an index of files by what they hold, in which a later one counts, as where weights are read into memory.

    The index of a checkpoint is not looked at for that, and may name another file; and the library, which takes a place
    in it to be beside the first file, does not find one in a folder below.

    :return: None where they are no safetensors files.
    """
    if not files or not all(file.endswith(".safetensors") for file in files):
        return None
    return {
        "weight_map": {name: str(Path(file).absolute()) for file in files for name in MappedFile(Path(file)).places}
    }


class _Opened:
    """Stands in for safetensors' ``safe_open``, and maps each tensor by itself when it is looked at.

    The library maps the whole file so that it may be written to, which Linux refuses where that is larger than memory
    and swap. transformers takes every tensor in hand while it loads, so that one that is read is read in vain.
    """

    def __init__(self, file: str, framework: str, device: str = "cpu", backend: str = "mmap") -> None:
        self._file = MappedFile(Path(file))

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def keys(self) -> list[str]:
        return list(self._file.places)

    def get_slice(self, name: str) -> "_Slice":
        return _Slice(self._file, name)

    def get_tensor(self, name: str) -> Tensor:
        return self._file.tensor(name)


class _Slice:
    """Stands in for a tensor that ``safe_open`` has not read yet."""

    def __init__(self, file: MappedFile, name: str) -> None:
        self._file, self._name = file, name

    def get_dtype(self) -> str:
        return self._file.places[self._name][0]

    def get_shape(self) -> list[int]:
        return list(self._file.places[self._name][1])

    def __getitem__(self, index: Any) -> Tensor:
        return self._file.tensor(self._name)[index]


def map_weights(model: Any, places: Mapping[str, Any], mapped: MappedWeights, dtype: torch.dtype) -> None:
    """Put mapped weights in the place of those that were left out; tied ones stay one parameter.

    :param places: By the name of a parameter its ``safetensors_file``, and ``weight_name`` in it.
    :param dtype: What the model was loaded in. What is left out is of that type, also what is float32 once it is read.
    """
    vars(model).pop("hf_device_map", None)  # saving would look for weights around forwards
    names: dict[int, list[str]] = {}
    absent = {name: one for name, one in model.named_parameters(remove_duplicate=False) if one.is_meta}
    for name, parameter in absent.items():
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        name = next((one for one in tied if one in places), None)
        if name is None:
            raise ModelError(f"{tied[0]} is in no file of the model")
        parameter = absent[name]
        wanted = torch.float32 if is_kept_in_float32(model, name, dtype) else parameter.dtype
        weight = mapped.map(name, _place(places[name], mapped), wanted)
        _put(model, tied, nn.Parameter(weight, requires_grad=parameter.requires_grad))
    _tie_what_is_equal(model, mapped)
    for name, _ in model.named_buffers():
        if name in places:
            mapped.keep_in_memory(name, _place(places[name], mapped))


def _tie_what_is_equal(model: Any, mapped: MappedWeights) -> None:
    """Tie weights that the configuration ties and the files hold both of, where transformers would in memory.

    While it loads it ties only what the files hold once: it cannot compare what it has left out.
    """
    find, pairs = model.get_parameter_or_buffer, dict(model.all_tied_weights_keys)
    apart = {tied for tied, to in pairs.items() if find(tied) is not find(to)}
    if not apart:
        return
    model.tie_weights(missing_keys=pairs.keys() - apart, recompute_mapping=False)  # which compares what is mapped
    for tied in apart:
        if find(tied) is find(pairs[tied]):
            mapped.tied(tied)


def _place(told: Mapping[str, str], mapped: MappedWeights) -> Place:
    file, stored = Path(told["safetensors_file"]), told["weight_name"]
    return Place(file, stored, None if file.parent == mapped.scratch else stored)


def _put(model: nn.Module, names: list[str], parameter: nn.Parameter) -> None:
    for name in names:
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner).register_parameter(attribute, parameter)
