"""Say how a model is given images and texts with places for them, and make examples of that."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.views.images import PIXELS
from ecoflap.adapters.views.view import BATCH, SAID, SEQUENCE, Example

CONSTANT = ("image_sizes", "image_grid_thw")
"""What a model is told of an image and looks at in Python. In a graph it is always that of one image."""
BEFORE = 2
"""How many words stand before the image in an example."""
AROUND = ("image_start_token_id", "image_end_token_id")
"""The tokens before and behind each image of a model that looks vectors up for them (Ovis 2.5)."""
LOOKED_UP = "get_visual_indicator_features"
QUESTION = "question_sequence"
Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class ImageForm:
    """Says how a model is given an image, and a text with places for it.

    :param model: The whole model.
    :param row: What it takes of one image, by argument of its forward; the pixels first.
    :param places: How many places an image has in a text.
    :param token: What stands there; of a model that is told by a mask where they are, any word.
    :param any_number: Whether one graph can take any number of images; else it takes one.
    """

    model: nn.Module
    row: Mapping[str, Tensor]
    places: int
    token: int
    any_number: bool

    @property
    def constants(self) -> dict[str, Any]:
        """Give what is the same for every image of a graph, as numbers."""
        return {name: value.tolist() for name, value in self.row.items() if name in CONSTANT}

    @property
    def image_axes(self) -> Axes:
        """Give the axes that vary of each input of an image."""
        return {name: self.varying({0: BATCH}) for name in self.row if name not in CONSTANT}

    @property
    def text_axes(self) -> Axes:
        """Give the axes that vary of each input of a text."""
        return {name: self.varying(axes) for name, (axes, _) in self._inputs.items()}

    @cached_property
    def takes(self) -> frozenset[str]:
        """Name the arguments of the model's forward."""
        return frozenset(signature(self.model.forward).parameters)

    @cached_property
    def reads_positions(self) -> bool:
        """Say whether what a place is in an image decides where it stands in a text, which the model finds in Python.

        Then a graph is given the positions, which the model's ``get_rope_index`` makes.
        """
        holders = (self.model, find(self.model, "model", nn.Module))
        return "position_ids" in self.takes and any(hasattr(one, "get_rope_index") for one in holders)

    def varying(self, axes: Mapping[int, str]) -> dict[int, str]:
        """Leave out the axis of images where a graph takes one."""
        return {axis: name for axis, name in axes.items() if self.any_number or name != BATCH}

    def images(self, example: Example) -> dict[str, Tensor]:
        """Draw images, and repeat what else goes with each."""
        rows, shape = self.rows(example), self.row[PIXELS].shape
        like = next(one for one in self.model.parameters() if one.is_floating_point())
        pixels = {PIXELS: example.numbers(like, rows * shape[0], *shape[1:])}
        others = {name: one for name, one in self.row.items() if name not in (PIXELS, *CONSTANT)}
        return pixels | {name: one.repeat(rows, *(1,) * (one.ndim - 1)) for name, one in others.items()}

    def texts(self, example: Example) -> dict[str, Tensor]:
        """Draw texts, each with the places of its image after a few words, and what else goes with them."""
        return {name: made(example) for name, (_, made) in self._inputs.items()}

    def marks(self, example: Example) -> Int64[Tensor, "rows tokens"]:
        """Mark the places of the image in an example's texts with 1."""
        row = torch.zeros(example.length + self.places, dtype=torch.int64)
        row[BEFORE : BEFORE + self.places] = 1
        return row.repeat(self.rows(example), 1)

    def rows(self, example: Example) -> int:
        """Give how many images there are in an example."""
        return example.batch if self.any_number else 1

    @property
    def vocabulary(self) -> int:
        """Give how many tokens are embedded."""
        return len(member(self.model, "get_input_embeddings")().weight)

    @cached_property
    def _inputs(self) -> dict[str, tuple[Mapping[int, str], Callable[[Example], Tensor]]]:
        """Give the axes of each input of a text, and what makes it."""
        return dict(_inputs_of(self))


def looks_up(model: nn.Module) -> nn.Module | None:
    """Give the module that looks up the vectors of the tokens around an image; None where these are words."""
    paths = ("model.multi_modal_projector", "multi_modal_projector")
    found = (find(model, path, nn.Module) for path in paths)
    return next((one for one in found if hasattr(one, LOOKED_UP)), None)


def around(model: nn.Module) -> list[int]:
    """Give the tokens before and behind an image that a model has to find in a text; none of most models."""
    return [] if looks_up(model) is None else [member(model, f"config.{name}", int) for name in AROUND]


def _inputs_of(form: ImageForm) -> Iterator[tuple[str, tuple[Mapping[int, str], Callable[[Example], Tensor]]]]:
    read, asked = {0: BATCH, 1: SEQUENCE}, {0: BATCH, 1: QUESTION}
    yield "input_ids", (read, lambda example: _ids(form, example))
    yield "attention_mask", (read, lambda example: example.mask(*form.marks(example).shape))
    for name in ("token_type_ids", "image_embeds_position_mask"):
        if name in form.takes:
            yield name, (read, form.marks)
    if form.reads_positions:
        yield "position_ids", ({1: BATCH, 2: SEQUENCE}, lambda example: _positions(form, example))
    if "aspect_ratio_mask" in form.row:
        yield "cross_attention_mask", (read, lambda example: _tiles_read(form, example))
    if "qformer_input_ids" in form.takes:
        count = member(form.model, "config.qformer_config.vocab_size", int)
        yield "qformer_input_ids", (asked, lambda example: example.ids(count, form.rows(example), example.said))
        yield "qformer_attention_mask", (asked, lambda example: example.mask(form.rows(example), example.said))
    if find(form.model, "config.is_encoder_decoder", bool):
        yield "decoder_input_ids", ({0: BATCH, 1: SAID}, lambda example: _words(form, example, example.said))


def _ids(form: ImageForm, example: Example) -> Int64[Tensor, "rows tokens"]:
    marks, ends = form.marks(example), around(form.model)
    ids = torch.where(marks == 1, form.token, _words(form, example, marks.shape[1]))
    if ends:
        ids[:, BEFORE - 1], ids[:, BEFORE + form.places] = ends[0], ends[1]
    return ids


def _words(form: ImageForm, example: Example, length: int) -> Int64[Tensor, "rows length"]:
    return example.ids(form.vocabulary, form.rows(example), length, without={form.token, *around(form.model)})


def _positions(form: ImageForm, example: Example) -> Int64[Tensor, "axes rows tokens"]:
    """Make positions in time, height and width that differ."""
    marks = form.marks(example)
    at = torch.arange(marks.shape[1]) - marks.cumsum(1)
    return torch.stack([at, at + marks, at + 2 * marks])


def _tiles_read(form: ImageForm, example: Example) -> Int64[Tensor, "rows tokens images tiles"]:
    """Have words read the tiles of an image from its place on."""
    after = (form.marks(example).cumsum(1) > 0).long()
    return after[:, :, None, None].repeat(1, 1, 1, form.row["aspect_ratio_mask"].shape[-1])
