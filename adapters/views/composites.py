"""Make views of models that were taken apart by watching: a text model that reads tokens, or vectors of images too."""

from collections.abc import Iterator, Sequence
from copy import copy
from inspect import signature
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from ecoflap.adapters.hubs.experts import experts_in_one_product
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.views.texts import CausalLM, view_from_embeddings
from ecoflap.adapters.views.view import TEXT_AXES, Example, view
from ecoflap.core.contracts.records import View
from ecoflap.core.model.anatomy import Tower


class Saying(CausalLM):
    """Runs a decoder, whose experts, if any, run without a choice among them in its graph."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        with experts_in_one_product(self.model):
            return super().forward(input_ids, attention_mask)


def view_of_causal_lm(model: nn.Module) -> View:
    """Give ``decoder``: tokens in, logits out."""
    vocabulary = len(member(model, "get_input_embeddings")().weight)

    def made(example: Example) -> dict[str, Tensor]:
        ids = example.ids(vocabulary, example.batch, example.length)
        return {"input_ids": ids, "attention_mask": example.mask(*ids.shape)}

    axes = {"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES}
    return view("decoder", Saying(model), made, ("logits",), axes)


def views_of_composite(model: nn.Module, towers: Sequence[Tower], reads: bool) -> Iterator[View]:
    """Yield ``language``: vectors of words and images in, logits out, without what looks at images.

    There is none of a model that reads images beside its words, or not without any.

    :param towers: The model's.
    :param reads: Whether its language tower reads another one.
    """
    paths = {tower.name: tower.blocks[0].name.split(".") for tower in towers if not tower.outside}
    says, known = paths.pop("language", None), signature(model.forward).parameters
    is_apart = "inputs_embeds" in known and "image_embeds_position_mask" not in known
    if says is None or reads or not is_apart or known["pixel_values"].default is not None:
        return
    rest: nn.Module = model
    for path in paths.values():
        together = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path, says, strict=False)))
        rest = _without(rest, path[: together + 1])
    yield view_from_embeddings(rest, says=False)


def _without(model: nn.Module, path: Sequence[str]) -> nn.Module:
    """Copy a module without what is at a path: other objects on the way there, of the same class, with its weights."""
    rest: Any = copy(model)
    rest._modules = dict(model._modules)
    first, *others = path
    if others and rest._modules.get(first) is not None:
        rest._modules[first] = _without(rest._modules[first], others)
    else:
        rest._modules.pop(first, None)
    return rest  # type: ignore[no-any-return]
