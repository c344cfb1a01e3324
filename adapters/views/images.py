"""Make views of models that look at images: of a vision model alone, and of one that is compared with a text tower."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ecoflap.adapters.shared.images import patch_convolution
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.views.view import BATCH, EXAMPLES, IMAGES, TEXT_AXES, TEXTS, Example, square, view, without
from ecoflap.core.contracts.records import View

PIXELS = "pixel_values"
IMAGE_AXES = {PIXELS: {0: BATCH}}
COMPARED = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")


class Vision(nn.Module):
    """Runs a vision model alone.

    :param outputs: Names of what is taken of its output; none for a model whose output is one tensor.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.outputs = model, tuple(outputs)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        made = self.model(pixel_values)
        return tuple(getattr(made, name) for name in self.outputs) or (made,)


class ImageEmbeds(nn.Module):
    """Projects what a vision tower of transformers reads off an image, and does not normalise it."""

    def __init__(self, tower: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        pooled = self.tower(pixel_values=pixel_values).pooler_output
        return (pooled if self.projection is None else self.projection(pooled),)


class TextEmbeds(nn.Module):
    """Projects what a text tower of transformers reads off a text, and does not normalise it."""

    def __init__(self, tower: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        pooled = self.tower(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return (self.projection(pooled),)


class WholeTextEmbeds(nn.Module):
    """Runs a text tower of transformers that is given no mask and projects by itself."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.tower(input_ids=input_ids).pooler_output,)


class Pair(nn.Module):
    """Compares every image with every text; it gives their normalised embeddings too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        made = self.model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask)
        return tuple(getattr(made, name) for name in COMPARED)


class PairOfWholeTexts(nn.Module):
    """Does what :class:`Pair` does, with a model that is given no mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, ...]:
        made = self.model(input_ids=input_ids, pixel_values=pixel_values)
        return tuple(getattr(made, name) for name in COMPARED)


class OpenClipText(nn.Module):
    """Runs open_clip's ``encode_text``, and does not normalise what it gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = without(model, "visual")

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model.encode_text(input_ids),)


class OpenClipPair(nn.Module):
    """Does what open_clip's ``get_logits`` does; it gives the normalised features too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, ...]:
        images = self.model.encode_image(pixel_values, normalize=True)
        texts = self.model.encode_text(input_ids, normalize=True)
        compared = self.model.logit_scale.exp() * images @ texts.T
        if self.model.logit_bias is not None:
            compared = compared + self.model.logit_bias
        return compared, compared.T, texts, images


def views_of_vision(model: nn.Module, stem: nn.Module, size: Any, names: Sequence[str]) -> Iterator[View]:
    """Yield ``vision``: with the logits if the model makes any, else with all of these that it makes.

    :param stem: What holds the convolution that cuts images into patches.
    :param size: Height and width of an image, as one number or as two.
    :param names: What the model may make. The first is also the name of a single output, unless that is a vector for
        each token: then it is ``last_hidden_state``.
    """
    images = images_of(stem, size)
    made = _made_without_numbers(model, images(EXAMPLES[0])[PIXELS])
    if isinstance(made, Tensor):
        (name,) = names if made.ndim == 2 else ("last_hidden_state",)
        yield view("vision", Vision(model), images, (name,), IMAGE_AXES)
        return
    there = tuple(name for name in names if getattr(made, name, None) is not None)
    outputs = there[:1] if there[0] == "logits" else there
    yield view("vision", Vision(model, outputs), images, outputs, IMAGE_AXES)


def _made_without_numbers(model: nn.Module, pixels: Tensor) -> Any:
    """Give what a model makes of images as tensors of the right shapes on the meta device; nothing is computed."""
    weightless = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    with torch.no_grad():
        return functional_call(model, weightless, (pixels.to("meta"),))


def images_of(stem: nn.Module, size: Any) -> Callable[[Example], dict[str, Tensor]]:
    """Give what makes the images of an example, which are normalised.

    :param stem: What holds the convolution that cuts images into patches.
    :param size: Height and width of an image, as one number or as two.
    """
    cut, shape = patch_convolution(stem), square(size)

    def made(example: Example) -> dict[str, Tensor]:
        return {PIXELS: example.numbers(cut.weight, example.batch, cut.in_channels, *shape)}

    return made


def images_of_tower(model: nn.Module) -> Callable[[Example], dict[str, Tensor]]:
    """Give what makes the images that a model's vision tower reads, of the size that its embeddings know."""
    embeddings = member(model, "vision_model.embeddings")
    return images_of(embeddings, embeddings.image_size)


def views_of_pair(
    images: Callable[[Example], dict[str, Tensor]],
    texts: Callable[[Example], dict[str, Tensor]],
    modules: tuple[nn.Module, nn.Module, nn.Module],
    *,
    is_any_length: bool = True,
) -> Iterator[View]:
    """Yield ``vision``, ``text`` and ``pair``, in which there may be more texts than images.

    :param modules: What runs each of the three.
    :param is_any_length: Whether a text may be of any length up to the longest that the model takes.
    """
    yield view("vision", modules[0], images, ("image_embeds",), IMAGE_AXES)
    lengths = {1: TEXT_AXES[1]} if is_any_length else {}
    names = texts(EXAMPLES[0])
    yield view("text", modules[1], texts, ("text_embeds",), {name: {0: BATCH, **lengths} for name in names})
    axes = {PIXELS: {0: IMAGES}, **{name: {0: TEXTS, **lengths} for name in names}}
    yield view("pair", modules[2], lambda example: {**images(example), **texts(example)}, COMPARED, axes)


def views_of_clip(model: nn.Module) -> Iterator[View]:
    """Yield ``vision``, ``text`` and ``pair`` of a CLIP of transformers; of its vision tower alone ``vision``."""
    images = images_of_tower(model)
    projection = member(model, "visual_projection", nn.Module)
    vision = ImageEmbeds(member(model, "vision_model", nn.Module), projection)
    tower = find(model, "text_model", nn.Module)
    if tower is None:
        yield view("vision", vision, images, ("image_embeds",), IMAGE_AXES)
        return
    count, end = len(member(tower, "embeddings.token_embedding.weight")), find(tower, "eos_token_id", int)
    # 2 stands for the end being the largest number, as in the first checkpoints
    last = count - 1 if end is None or end == 2 else end

    def texts(example: Example) -> dict[str, Tensor]:
        mask = example.mask(example.texts, example.length)
        ids = example.ids(count, example.texts, example.length, without=[last])
        ids[torch.arange(len(ids)), mask.sum(1) - 1] = last
        return {"input_ids": ids * mask, "attention_mask": mask}

    text = TextEmbeds(tower, member(model, "text_projection", nn.Module))
    yield from views_of_pair(images, texts, (vision, text, Pair(model)))


def views_of_siglip(model: nn.Module) -> Iterator[View]:
    """Yield ``vision``, ``text`` and ``pair`` of a SigLIP of transformers, whose texts are all of one length."""
    embeddings, tower = member(model, "vision_model.embeddings"), member(model, "text_model", nn.Module)
    count = len(member(tower, "embeddings.token_embedding.weight"))
    length = len(member(tower, "embeddings.position_embedding.weight"))

    def texts(example: Example) -> dict[str, Tensor]:
        return {"input_ids": example.ids(count, example.texts, length)}

    vision = ImageEmbeds(member(model, "vision_model", nn.Module), None)
    modules = vision, WholeTextEmbeds(tower), PairOfWholeTexts(model)
    images = images_of(embeddings, embeddings.image_size)
    yield from views_of_pair(images, texts, modules, is_any_length=False)


def views_of_open_clip(model: nn.Module, length: int, vocabulary: int) -> Iterator[View]:
    """Yield ``vision``, ``text`` and ``pair`` of a model of open_clip, whose texts are all of one length.

    :param length: The length of a text in tokens.
    :param vocabulary: How many tokens there are; the last of them ends a text.
    """
    visual = member(model, "visual")

    def texts(example: Example) -> dict[str, Tensor]:
        mask = example.mask(example.texts, min(example.length, length))
        ids = example.ids(vocabulary, len(mask), mask.shape[1], without=[vocabulary - 1])
        ids[torch.arange(len(ids)), mask.sum(1) - 1] = vocabulary - 1
        return {"input_ids": nn.functional.pad(ids * mask, (0, length - mask.shape[1]))}

    modules = Vision(visual), OpenClipText(model), OpenClipPair(model)
    yield from views_of_pair(images_of(visual, visual.image_size), texts, modules, is_any_length=False)
