"""Make ``language`` of models that read an image in a text: the text model alone, which reads what images became."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from ecoflap.adapters.hubs.experts import experts_in_one_product
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.views.at_once import ComputedAtOnce
from ecoflap.adapters.views.image_form import ImageForm
from ecoflap.adapters.views.images import PIXELS
from ecoflap.adapters.views.masks import broadcast_masks
from ecoflap.adapters.views.view import BATCH, TEXT_AXES, Example, view, without
from ecoflap.core.contracts.records import View
from ecoflap.core.model.anatomy import Tower

SAYS = ("language", "encoder", "decoder")
EMBEDS, STATES, TILES = "inputs_embeds", "cross_attention_states", "cross_attention_mask"
BESIDE_VECTORS = ("attention_mask", "token_type_ids", "position_ids", "decoder_input_ids")
FEW = 4
"""How many places an image has at most in the example of a text: there its vectors are like others, and a real image's
hundreds would only make the example long."""
BESIDE_STATES = ("input_ids", "attention_mask", TILES)
MODALITIES = "moe_mm_token_type_ids"
"""Which tokens are an image's, of a text model that has experts for them (ERNIE 4.5 VL)."""
COUNTS = "create_position_ids_from_inputs_embeds"
"""Counts the positions of a text in embeddings as fairseq has them, which are one for all padding, and go on from it
with the first word. Of vectors it cannot tell which are padding, and counts all."""


class Reading(nn.Module):
    """Gives what a text model says next of inputs by their names, without a cache."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)
        counting: list[Any] = [one for one in model.modules() if hasattr(one, COUNTS)]
        self.padding: int | None = counting[0].padding_idx if counting and EMBEDS in names else None

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        given: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        if self.padding is not None:
            mask = given["attention_mask"]
            given["position_ids"] = mask.cumsum(1) * mask + self.padding
        if {"use_cache", "kwargs"} & set(signature(self.model.forward).parameters):
            given["use_cache"] = False
        with experts_in_one_product(self.model), broadcast_masks(), ComputedAtOnce():
            return (self.model(**given).logits,)


def language_view(form: ImageForm, towers: Sequence[Tower]) -> View:
    """Give ``language`` of a model of which :func:`why_no_language` says nothing."""
    alone = replace(form, any_number=True, places=min(form.places, FEW))  # an image is vectors like others here
    if STATES in form.takes:
        return _beside_states(alone)
    model, says = form.model, _paths(towers, says=True)
    if _takes_no_image(form):
        seen = [_apart(path, says[0]) for path in _paths(towers, says=False)]
        model = without(model, *(".".join(path) for path in seen))
    else:
        model = model.get_submodule(says[0][0])
    return _of_vectors(alone, model)


def why_no_language(form: ImageForm, towers: Sequence[Tower], reads: bool) -> str | None:
    """Say why a model has no ``language``; None where it has.

    :param reads: Whether its language tower reads another one.
    """
    says = _paths(towers, says=True)
    if not says:
        return "nothing of it is a text model of its own"
    if taps_of(form, towers):
        return (
            "its text model reads vectors of the image in its first blocks too, which are none of those in the places "
            "of the image"
        )
    if STATES in form.takes:
        return None
    if reads:
        return "its text model reads the vision tower in blocks of its own, and takes nothing in the place of that"
    inner = form.model if _takes_no_image(form) else form.model.get_submodule(says[0][0])
    head: Any = getattr(inner, "get_output_embeddings", lambda: None)()
    if head is None or EMBEDS not in signature(inner.forward).parameters:
        return "it takes no vectors in the place of tokens"
    if MODALITIES in form.takes:
        return (
            f"its text model looks in Python at {MODALITIES} for which tokens are an image's, and vectors do not tell"
        )
    config: Any = form.model.config
    if find(config.get_text_config(), "hidden_size_per_layer_input", int):  # Gemma 4's smaller ones
        return "its text model embeds the tokens for each layer anew, and vectors in their places do not tell them"
    return None


def taps_of(form: ImageForm, towers: Sequence[Tower]) -> bool:
    """Say whether blocks of the text model read further vectors of an image (deepstack)."""
    owners = {".".join(path[:-2]) for path in _paths(towers, says=True)}
    known = [name for owner in owners for name in signature(form.model.get_submodule(owner).forward).parameters]
    return any(name.startswith("deepstack") for name in known)


def without_text_model(model: nn.Module, towers: Sequence[Tower]) -> nn.Module:
    """Copy a model without what says a text, and its head."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    heads = [name for name, module in model.named_modules() if module is head and name]
    seen = _paths(towers, says=False)
    says = [_apart(path, seen[0]) if seen else path for path in _paths(towers, says=True)]
    return without(model, *(".".join(path) for path in says), *heads)


def _of_vectors(form: ImageForm, model: nn.Module) -> View:
    """Give a view that reads vectors of words and of images."""
    embedding = member(model, "get_input_embeddings")().weight
    takes = signature(model.forward).parameters
    beside = {name: axes for name, axes in form.text_axes.items() if name in BESIDE_VECTORS and name in takes}

    def made(example: Example) -> dict[str, Tensor]:
        texts = form.texts(example)
        vectors = example.numbers(embedding, *texts["input_ids"].shape, embedding.shape[1])
        return {EMBEDS: vectors, **{name: texts[name] for name in beside}}

    return view("language", Reading(model, [EMBEDS, *beside]), made, ("logits",), {EMBEDS: TEXT_AXES, **beside})


def _beside_states(form: ImageForm) -> View:
    """Give a view that reads words, and beside them what was made of an image's tiles."""
    seen, width = member(form.model, "model.vision_model"), member(form.model, "config.text_config.hidden_size", int)
    count, like = form.row["aspect_ratio_mask"].shape[-1] * seen.num_patches, next(seen.parameters())
    stub = nn.Module()
    stub.num_patches = seen.num_patches  # of the vision tower the text model asks for this number
    rest = without(form.model, "model.vision_model", "model.multi_modal_projector")
    inner: Any = rest.get_submodule("model")
    inner.vision_model = stub
    axes = {**{name: form.text_axes[name] for name in BESIDE_STATES}, STATES: {0: BATCH}}

    def made(example: Example) -> dict[str, Tensor]:
        texts = form.texts(example)
        return {name: texts[name] for name in BESIDE_STATES} | {
            STATES: example.numbers(like, example.batch, count, width)
        }

    return view("language", Reading(rest, list(axes)), made, ("logits",), axes)


def _takes_no_image(form: ImageForm) -> bool:
    """Say whether the whole model runs without an image, given vectors."""
    known: Mapping[str, Any] = signature(form.model.forward).parameters
    has_default = known[PIXELS].default is None
    return EMBEDS in known and has_default and "image_embeds_position_mask" not in known


def _paths(towers: Sequence[Tower], says: bool) -> list[list[str]]:
    inside = [tower for tower in towers if not tower.outside and (tower.name in SAYS) == says]
    return [tower.blocks[0].name.split(".") for tower in inside]


def _apart(path: Sequence[str], other: Sequence[str]) -> list[str]:
    """Give the beginning of a path up to where it leaves another one."""
    together = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path, other, strict=False)))
    return list(path[: together + 1])
