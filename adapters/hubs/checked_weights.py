"""Refuse a checkpoint whose weights are not those of its configuration, or are not numbers that can be pruned.

transformers draws a weight that is missing at random, leaves out one that it has no place for, and reads integers as if
they were the weights themselves. It says so in a log at most.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ecoflap.adapters.shared.stored_types import types_in
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import ModelError, first_of
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.source import snapshot, weight_files

DEQUANTISED = {
    "compressed-tensors": "CompressedTensorsConfig",
    "fp8": "FineGrainedFP8Config",
    "mxfp4": "Mxfp4Config",
}
"""Kinds of quantisation that transformers can undo while it loads, and the class that asks for it."""

_NAMED = 4
"""Weights that a message names; the others are counted."""


def refuse_quantised(source: Source) -> None:
    """Refuse a configuration that says that its weights are quantised, as far as they are not de-quantised on reading.

    :raises ModelError: With how they are, which they are where that can be seen, and what can be done.
    """
    found = _quantised_in(source.config)
    if found is None or (source.path is not None and source.path.is_file()):  # a GGUF's are de-quantised
        return
    method = str(found.get("quant_method", "a method that it does not name"))
    kind = DEQUANTISED.get(method)
    undo = f": from_pretrained with {kind}(dequantize=True), then save_pretrained, undoes it" if kind else ""
    raise ModelError(
        f"{source.name} is quantised ({method}){_which(source)}, and what is pruned here are real numbers. Name the "
        f"model that it was made from, or de-quantise it and name that folder{undo}."
    )


def refuse_other_weights(
    source: Source, model: nn.Module, info: Mapping[str, Any], others: Iterable[nn.Module] = ()
) -> None:
    """Refuse weights that are missing, without a place, of another shape, or integers where the model computes.

    :param info: What ``from_pretrained`` says of its loading.
    :param others: Other models of the same configuration, without weights, asked for where a weight has no place: what
        one of them has, such as a head of pre-training, the configuration knows.
    :raises ModelError: With each kind of what is wrong, by name.
    """
    problems = [
        *_missing(source, sorted(info["missing_keys"])),
        *_reshaped(source, list(info.get("mismatched_keys", ()))),
        *_unknown(source, sorted(info["unexpected_keys"]), others),
        *integer_problems(source, model),
    ]
    if problems:
        raise ModelError(*problems)


def _missing(source: Source, names: list[str]) -> Iterator[str]:
    if names:  # transformers would go on with random numbers in their place
        yield f"{source.name} lacks {len(names)} of the model's weights: {first_of(names, _NAMED)}."


def _reshaped(source: Source, found: list[str | tuple[str, Any, Any]]) -> Iterator[str]:
    if found:  # of which transformers 4.51 gives the names alone
        rows = sorted(one if isinstance(one, str) else _shapes(*one) for one in found)
        yield f"{source.name} holds weights of other shapes than its config.json says: {first_of(rows, _NAMED)}."


def _shapes(name: str, stored: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{name} is {list(stored)} and should be {list(wanted)}"


def _unknown(source: Source, names: list[str], others: Iterable[nn.Module]) -> Iterator[str]:
    left = set(names)
    for other in others if names else ():
        prefix = getattr(other, "base_model_prefix", "")
        left -= {form for name in other.state_dict() for form in (name, f"{prefix}.{name}")}
    if left:
        yield (
            f"{source.name} holds {len(left)} weights that its config.json does not know, and that would be left out: "
            f"{first_of(sorted(left), _NAMED)}. The configuration is of another model, or a key of it is wrong, such "
            f"as the number of layers or that there are biases."
        )


def integer_problems(source: Source, model: nn.Module | None = None) -> Iterator[str]:
    """Find integers in the files where the model has real numbers; without scales they are not the weights.

    :param model: None where it could not be loaded, which may be why.
    """
    parameters = model.named_parameters() if model is not None else ()
    wanted = {name for name, weight in parameters if weight.is_floating_point()}
    stored = _integers_in(source)
    weights = {name: kind for name, kind in stored.items() if name.endswith("weight") or name in wanted}
    found = [f"{name} ({dtype_name(kind)})" for name, kind in weights.items()]
    if found:
        yield (
            f"{source.name} holds integers in {len(found)} weights, and its config.json has no quantization_config "
            f"that says what numbers they stand for: {first_of(found, _NAMED)}. Name the model that it was made from."
        )


def _integers_in(source: Source) -> dict[str, torch.dtype]:
    """Give the integer tensors in the files of a source by their headers; a file without one is not looked at."""
    opened = snapshot(source)
    there = sorted(opened.glob("*.safetensors")) if opened else weight_files(source)
    files = [file for file in there if file.suffix == ".safetensors"]
    types = {name: kind for file in files for name, kind in types_in(file).items()}
    return {name: kind for name, kind in types.items() if not (kind.is_floating_point or kind.is_complex)}


def _quantised_in(config: Mapping[Any, Any]) -> Mapping[str, Any] | None:
    """Find how weights are quantised, in a configuration or in that of one of its parts."""
    found = config.get("quantization_config")
    if found:
        return found if isinstance(found, Mapping) else {}
    inside = (_quantised_in(part) for part in config.values() if isinstance(part, Mapping))
    return next((one for one in inside if one is not None), None)


def _which(source: Source) -> str:
    """Name integers among the weights of a folder, those of experts first."""
    names = sorted(_integers_in(source), key=lambda name: ("expert" not in name, name))
    return f": {first_of(names, _NAMED)} are integers" if names else ""
