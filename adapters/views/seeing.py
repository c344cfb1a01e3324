"""Make views of models that read an image in a text: ``vision``, the vectors of an image, and ``all`` in one graph."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.adapters.hubs.experts import experts_in_one_product
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.views.at_once import ComputedAtOnce, ListOfOne, SizesAsNumbers
from ecoflap.adapters.views.image_form import AROUND, LOOKED_UP, ImageForm, around, looks_up
from ecoflap.adapters.views.language import taps_of
from ecoflap.adapters.views.masks import broadcast_masks
from ecoflap.adapters.views.view import view
from ecoflap.core.contracts.records import View
from ecoflap.core.model.anatomy import Tower

LOOKS = "get_image_features"
PACKS = "pack_image_features"
INDICATORS = "visual_indicator_features"
"""The vectors of tokens around an image that are no words, which Ovis 2 gives with those of the image."""


class Vectors(nn.Module):
    """Gives the vectors that a text model reads in the places of an image, and in those of its indicator tokens."""

    def __init__(self, model: nn.Module, form: ImageForm, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.form, self.names = model, form, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        get: Any = member(self.model, LOOKS)
        rows = inputs[0].shape[0] if self.form.any_number else 1
        with looking(self.form):
            named = dict(zip(self.names, inputs, strict=True))
            made = get(**named, **settings_asked(self.model), **_constants(get, self.form, inputs[0]))
        indicators = _indicators(self.model, made) if indicator_tokens(self.form.model) else ()
        made = getattr(made, "pooler_output", made)
        vectors = torch.cat(list(made)) if isinstance(made, list | tuple) else made
        return (vectors.reshape(rows, -1, vectors.shape[-1]), *indicators)


class Tiles(nn.Module):
    """Gives the vectors of an image's tiles, which a text model reads beside its words."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision_model = member(model, "model.vision_model", nn.Module)
        self.multi_modal_projector = member(model, "model.multi_modal_projector", nn.Module)

    def forward(self, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor) -> tuple[Tensor]:
        with ComputedAtOnce():
            seen = self.vision_model(pixel_values, aspect_ratio_ids, aspect_ratio_mask).last_hidden_state
            vectors = self.multi_modal_projector(seen)
        return (vectors.reshape(pixel_values.shape[0], -1, vectors.shape[-1]),)


class Whole(nn.Module):
    """Gives what a model says next of images and texts."""

    def __init__(self, form: ImageForm, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.form, self.names = looking_alike(form.model, form), form, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        given: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        given |= _constants(self.form.model.forward, self.form, inputs[0])
        if {"use_cache", "kwargs"} & self.form.takes:
            given["use_cache"] = False
        with experts_in_one_product(self.model), broadcast_masks(), ComputedAtOnce():
            return (self.model(**given).logits,)


def vision_and_all(form: ImageForm, sees: nn.Module) -> Iterator[View]:
    """Yield ``vision`` and ``all``.

    :param sees: The model without its text model.
    """
    images, texts = form.image_axes, form.text_axes
    if "aspect_ratio_mask" in form.row:
        yield view("vision", Tiles(form.model), form.images, ("image_embeds",), images)
    elif hasattr(sees, LOOKS):
        asked = [name for name in texts if name in signature(member(sees, LOOKS)).parameters]
        axes = {**images, **{name: texts[name] for name in asked}}
        made = ("image_embeds", *(["indicator_embeds"] if indicator_tokens(form.model) else []))
        yield view("vision", Vectors(sees, form, list(axes)), lambda example: _named(form, example, axes), made, axes)
    axes_of_all = {**images, **texts}
    yield view("all", Whole(form, list(axes_of_all)), lambda example: _named(form, example, axes_of_all), (
        "logits",
    ), axes_of_all)  # fmt: skip


def indicator_tokens(model: nn.Module) -> list[int]:
    """Give the tokens around an image that are no words, in the order of their vectors; none of most models."""
    config: Any = model.config
    if hasattr(config, "visual_indicator_token_ids"):
        return list(config.visual_indicator_token_ids)
    return around(model)


def settings_asked(model: nn.Module) -> dict[str, Any]:
    """Give of a configuration what a model asks for when it looks: with transformers before 4.52 the layer it reads."""
    asked = [one.name for one in signature(member(model, LOOKS)).parameters.values() if one.default is one.empty]
    config: Any = model.config
    return {name: getattr(config, name) for name in asked if hasattr(config, name)}


def why_no_vision(form: ImageForm, towers: Sequence[Tower]) -> str | None:
    """Say why a model has no ``vision``; None where it has."""
    if taps_of(form, towers):
        return "its text model reads more of an image than the vectors in its places"
    if hasattr(form.model, PACKS) and settings_asked(form.model):
        return f"{LOOKS} of this transformers gives the vectors of tiles, which {PACKS} puts together later"
    if "aspect_ratio_mask" in form.row or hasattr(form.model, LOOKS):
        return None
    return f"{type(form.model).__name__} has no {LOOKS}, which would say what its text model reads of an image"


@contextmanager
def looking(form: ImageForm) -> Iterator[None]:
    """Have a model look at images, for as long as this lasts, in a way that torch can make a graph of."""
    with ExitStack() as modes:
        modes.enter_context(ComputedAtOnce())
        modes.enter_context(ListOfOne() if form.any_number else SizesAsNumbers())
        yield


def looking_alike(model: nn.Module, form: ImageForm) -> nn.Module:
    """Copy a model, whose weights it holds, so that it looks at images as :func:`looking` has it."""
    alike: Any = copy(model)
    alike._modules = dict(model._modules)
    inner = find(model, "model", nn.Module)
    if inner is not None and hasattr(inner, LOOKS):
        alike._modules["model"] = looking_alike(inner, form)
    looks: Callable[..., Any] | None = getattr(type(model), LOOKS, None)
    if looks is not None:
        vars(alike)[LOOKS] = lambda *args, **kwargs: _looked(form, looks, alike, *args, **kwargs)
    return alike  # type: ignore[no-any-return]


def _looked(form: ImageForm, looks: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with looking(form):
        return looks(*args, **kwargs)


def _indicators(model: nn.Module, made: Any) -> tuple[Tensor]:
    if hasattr(made, INDICATORS):
        return (getattr(made, INDICATORS),)
    table: Any = looks_up(model)
    vectors: Tensor = getattr(table, LOOKED_UP)(next(table.parameters()).device)
    return (vectors[: len(AROUND)],)  # the next two are of films, which no view has


def _named(form: ImageForm, example: Any, names: Any) -> dict[str, Tensor]:
    made = {**form.images(example), **form.texts(example)}
    return {name: made[name] for name in names}


def _constants(function: Callable[..., Any], form: ImageForm, like: Tensor) -> dict[str, Tensor]:
    known = signature(function).parameters
    with ComputedAtOnce():
        made = {name: torch.tensor(value) for name, value in form.constants.items() if name in known}
        return {name: value.to(like.device) for name, value in made.items()}
