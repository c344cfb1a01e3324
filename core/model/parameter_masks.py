"""Masks by parameter, for whoever reads a whole state dict: those of a parameter's parts are put together."""

import re
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Part, part_of

_PART = re.compile(r"(?P<parameter>.+)\[(?P<start>\d+)(:(?P<stop>\d+))?\]")


def parameter_and_part(layer: str) -> tuple[str, Part | None]:
    """Take a layer's name apart: ``experts.down_proj[3]`` is part 3 of ``experts.down_proj``."""
    match = _PART.fullmatch(layer)
    if match is None:
        return layer, None
    start, stop = int(match["start"]), match["stop"]
    return match["parameter"], start if stop is None else (start, int(stop))


class ParameterMasks(Mapping[str, Tensor]):
    """The masks of a model's parameters, of the shapes that they have; each is put together when it is asked for.

    A part of a parameter that is no layer is kept whole.

    :param by_layer: Each as its parameter lies.
    """

    def __init__(self, model: nn.Module, by_layer: Mapping[str, Bool[Tensor, "..."]]) -> None:
        self._model, self.by_layer = model, by_layer
        self._layers: dict[str, list[tuple[str, Part | None]]] = {}
        for layer in by_layer:
            name, part = parameter_and_part(layer)
            self._layers.setdefault(name, []).append((layer, part))

    def __getitem__(self, name: str) -> Bool[Tensor, "..."]:
        layers = self._layers[name]
        if layers[0][1] is None:
            return self.by_layer[name]
        whole = torch.ones(self._model.get_parameter(name).shape, dtype=torch.bool)
        for layer, part in layers:
            assert part is not None  # a parameter is a layer, or its parts are
            place, mask = part_of(whole, part), self.by_layer[layer]
            if place.shape != mask.shape:
                found, wanted = tuple(mask.shape), tuple(place.shape)
                raise ModelError(f"the mask of {layer} has the shape {found}, and its part of the parameter {wanted}")
            place.copy_(mask)
        return whole

    def places(self, name: str) -> tuple[Shaped[Tensor, "..."], dict[str, Shaped[Tensor, "..."]]] | None:
        """Give a parameter without data, and of its layers each as a view of it; None of one that is a layer itself."""
        parts = [(layer, part) for layer, part in self._layers[name] if part is not None]
        if not parts:
            return None
        whole = torch.empty(self._model.get_parameter(name).shape, device="meta")
        return whole, {layer: part_of(whole, part) for layer, part in parts}

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
