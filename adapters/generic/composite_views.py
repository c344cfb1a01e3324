"""Make the views of a model that reads images in a text, by how it was taken apart, and say which it lacks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ecoflap.adapters.generic.watching.examples import ROWS, a_word, image_token
from ecoflap.adapters.generic.watching.taken_apart import SeenBlock, TakenApart
from ecoflap.adapters.hubs.weightless import lent_weights
from ecoflap.adapters.views.graphs import ran_empty, why_no_graph
from ecoflap.adapters.views.image_form import CONSTANT, ImageForm
from ecoflap.adapters.views.images import PIXELS
from ecoflap.adapters.views.impossible import views_impossible
from ecoflap.adapters.views.language import MODALITIES, language_view, why_no_language, without_text_model
from ecoflap.adapters.views.seeing import settings_asked, vision_and_all, why_no_vision
from ecoflap.core.contracts.records import View

OF_TEXT = frozenset({
    "input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", MODALITIES, "image_embeds_position_mask",
    "cross_attention_mask", "qformer_input_ids", "qformer_attention_mask", "decoder_input_ids",
})  # fmt: skip
VIEWS = ("vision", "language", "all")
SIZES, RATIOS = "image_sizes", "aspect_ratio_ids"


def composite_views(model: nn.Module, taken_apart: TakenApart) -> tuple[list[View], dict[str, str]]:
    """Give ``vision``, ``language`` and ``all``, and why a model lacks one of them, by its name."""
    if PIXELS not in taken_apart.inputs:
        return [], dict.fromkeys(VIEWS, f"the model takes no {PIXELS}, of which views are made")
    towers, form = taken_apart.towers, image_form(model, taken_apart.inputs)
    says = [block for tower in towers if tower.name == "language" for block in tower.blocks]
    reads = any(layer.reads for block in says if isinstance(block, SeenBlock) for layer in block.layers)
    why = {"vision": why_no_vision(form, towers), "language": why_no_language(form, towers, reads)}
    refused = {name: reason for name, reason in why.items() if reason is not None}
    views = list(vision_and_all(form, without_text_model(model, towers)))
    if "language" not in refused:
        views.insert(len(views) - 1, language_view(form, towers))
    return [view for view in views if view.name not in refused], refused


def composites_impossible(model: nn.Module, views: Sequence[View], exporter: str, most: int | None) -> dict[str, str]:
    """Say which views no file can hold, and why: a loop of the text model is one of the whole too.

    :param exporter: Whose files they would be.
    :param most: How many tokens the model reads at most; None where it does not say.
    """
    says = [view for view in views if view.name == "language"]
    found = views_impossible(says, exporter, most)
    found |= {"all": found["language"]} if found else {}
    with lent_weights(model):
        tried = {view.name: why_no_graph(view, exporter) for view in views}
    return {**{name: why for name, why in tried.items() if why is not None}, **found}


def image_form(model: nn.Module, inputs: Mapping[str, Tensor]) -> ImageForm:
    """Say how a model is given images.

    :param inputs: What it was seen to run on, so many images and texts as there are rows.
    """
    row = {name: value[: len(value) // ROWS] for name, value in inputs.items() if name not in OF_TEXT}
    gives_each, loops = _looks(model, inputs[PIXELS])
    if gives_each:  # it asks for no size of an image that it was made for
        row.pop(SIZES, None)
    token = image_token(model.config) or a_word(model.config)
    marks = inputs.get("image_embeds_position_mask", inputs["input_ids"] == token)
    alike = row[PIXELS].ndim == 4 and gives_each is not False and not set(row) & set(CONSTANT)
    return ImageForm(
        model,
        {PIXELS: row.pop(PIXELS), **row},
        places=int(marks[0].sum()),
        token=token,
        any_number=RATIOS in row or (alike and not loops),
    )


class _Looking(nn.Module):
    """Counts the parts of what a model makes of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> int:
        get: Any = self.model.get_image_features
        made = get(pixel_values=pixel_values, **settings_asked(self.model))
        return len(getattr(made, "pooler_output", made))


class _Counting(TorchFunctionMode):
    """Counts the functions of torch that are called."""

    calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def _looks(model: nn.Module, pixels: Tensor) -> tuple[bool | None, bool]:
    """Say how a model looks at images, of pixels alone.

    :return: Whether it makes vectors of each, None where it does not say; and whether it does more for more images, as
        in a loop, of which a graph would hold as many turns as its example has images.
    """
    seen: list[tuple[int, int]] = []
    with suppress(Exception):
        for some in (pixels, torch.cat([pixels, pixels])):
            seen.append(_looked(model, some))
    gives_each = seen[0][0] == ROWS if seen else None
    return gives_each, len(seen) > 1 and seen[1][1] > seen[0][1]


def _looked(model: nn.Module, pixels: Tensor) -> tuple[int, int]:
    """Run what looks at images without computing: how many parts it gives, and of how many functions it makes them."""
    like = next(one for one in model.parameters() if one.is_floating_point())
    with lent_weights(model), _Counting() as counting:
        parts: int = ran_empty(_Looking(model), pixels.to(like.dtype))
    return parts, counting.calls
