"""Views of models that look at images: of one alone, and of one with a text tower that it is compared with."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.adapters.shared.images import patch_convolution
from ecoflap.adapters.shared.matrices import part
from ecoflap.adapters.views.view import BATCH, EXAMPLES, IMAGES, TEXT_AXES, TEXTS, Example, square, view, without
from ecoflap.core.contracts.records import View

PIXELS = "pixel_values"
IMAGE_AXES = {PIXELS: {0: BATCH}}
COMPARED = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")


class Vision(nn.Module):
    """A vision model alone.

    :param outputs: What is taken of its output, by name; none of a model whose output is one tensor.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.outputs = model, tuple(outputs)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        made = self.model(pixel_values)
        return tuple(getattr(made, name) for name in self.outputs) or (made,)


class ImageEmbeds(nn.Module):
    """What a vision tower of transformers reads off an image, projected; it is not normalised."""

    def __init__(self, tower: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        pooled = self.tower(pixel_values=pixel_values).pooler_output
        return (pooled if self.projection is None else self.projection(pooled),)


class TextEmbeds(nn.Module):
    """What a text tower of transformers reads off a text, projected; it is not normalised."""

    def __init__(self, tower: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        pooled = self.tower(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return (self.projection(pooled),)


class WholeTextEmbeds(nn.Module):
    """As above, of a text tower that is given no mask and projects by itself."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.tower(input_ids=input_ids).pooler_output,)


class Pair(nn.Module):
    """Every image compared with every text; the embeddings are normalised."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        made = self.model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask)
        return tuple(getattr(made, name) for name in COMPARED)


class PairOfWholeTexts(nn.Module):
    """As above, of a model that is given no mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, ...]:
        made = self.model(input_ids=input_ids, pixel_values=pixel_values)
        return tuple(getattr(made, name) for name in COMPARED)


class OpenClipText(nn.Module):
    """What open_clip's ``encode_text`` gives, not normalised."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = without(model, "visual")

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model.encode_text(input_ids),)


class OpenClipPair(nn.Module):
    """As open_clip's ``get_logits``, with the normalised features it is of."""

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
    """``vision``: the first of these that the model gives, or all of them that are hidden states.

    :param stem: What holds the convolution that cuts images into patches.
    :param size: Of an image, as one number or as two.
    """
    images = images_of(stem, size)
    weight = patch_convolution(stem).weight
    with torch.no_grad():
        made = model(images(EXAMPLES[0])[PIXELS].to(weight.device))
    if isinstance(made, Tensor):
        (name,) = names if made.ndim == 2 else ("last_hidden_state",)
        yield view("vision", Vision(model), images, (name,), IMAGE_AXES)
        return
    there = tuple(name for name in names if getattr(made, name, None) is not None)
    outputs = there[:1] if there[0] == "logits" else there
    yield view("vision", Vision(model, outputs), images, outputs, IMAGE_AXES)


def images_of(stem: nn.Module, size: Any) -> Callable[[Example], dict[str, Tensor]]:
    """From an example to its images, which are normalised."""
    cut, shape = patch_convolution(stem), square(size)

    def made(example: Example) -> dict[str, Tensor]:
        return {PIXELS: example.numbers(cut.weight, example.batch, cut.in_channels, *shape)}

    return made


def views_of_pair(
    images: Callable[[Example], dict[str, Tensor]],
    texts: Callable[[Example], dict[str, Tensor]],
    modules: tuple[nn.Module, nn.Module, nn.Module],
    *,
    is_any_length: bool = True,
) -> Iterator[View]:
    """``vision``, ``text`` and ``pair``, in which there may be more texts than images.

    :param modules: Of the three.
    :param is_any_length: Of a text, up to what the model takes.
    """
    yield view("vision", modules[0], images, ("image_embeds",), IMAGE_AXES)
    lengths = {1: TEXT_AXES[1]} if is_any_length else {}
    names = texts(EXAMPLES[0])
    yield view("text", modules[1], texts, ("text_embeds",), {name: {0: BATCH, **lengths} for name in names})
    axes = {PIXELS: {0: IMAGES}, **{name: {0: TEXTS, **lengths} for name in names}}
    yield view("pair", modules[2], lambda example: {**images(example), **texts(example)}, COMPARED, axes)


def views_of_clip(model: nn.Module) -> Iterator[View]:
    """Of a CLIP of transformers; of its vision tower alone the first."""
    embeddings = part(model, "vision_model.embeddings")
    images = images_of(embeddings, embeddings.image_size)
    vision = ImageEmbeds(part(model, "vision_model"), part(model, "visual_projection"))
    tower = part(model, "text_model")
    if tower is None:
        yield view("vision", vision, images, ("image_embeds",), IMAGE_AXES)
        return
    count, end = len(part(tower, "embeddings.token_embedding.weight")), part(tower, "eos_token_id")
    # 2 stands for the end being the largest number, as in the first checkpoints
    last = count - 1 if end in (None, 2) else int(end)

    def texts(example: Example) -> dict[str, Tensor]:
        mask = example.mask(example.texts, example.length)
        ids = example.ids(count, example.texts, example.length, without=last)
        ids[torch.arange(len(ids)), mask.sum(1) - 1] = last
        return {"input_ids": ids * mask, "attention_mask": mask}

    text = TextEmbeds(tower, part(model, "text_projection"))
    yield from views_of_pair(images, texts, (vision, text, Pair(model)))


def views_of_siglip(model: nn.Module) -> Iterator[View]:
    """Of a SigLIP of transformers, whose texts are all as long as it takes them."""
    embeddings, tower = part(model, "vision_model.embeddings"), part(model, "text_model")
    count = len(part(tower, "embeddings.token_embedding.weight"))
    length = len(part(tower, "embeddings.position_embedding.weight"))

    def texts(example: Example) -> dict[str, Tensor]:
        return {"input_ids": example.ids(count, example.texts, length)}

    modules = ImageEmbeds(part(model, "vision_model"), None), WholeTextEmbeds(tower), PairOfWholeTexts(model)
    images = images_of(embeddings, embeddings.image_size)
    yield from views_of_pair(images, texts, modules, is_any_length=False)


def views_of_open_clip(model: nn.Module, length: int, vocabulary: int) -> Iterator[View]:
    """Of a model of open_clip, whose texts are all as long as it takes them.

    :param vocabulary: The last of whose tokens ends a text.
    """
    visual = part(model, "visual")

    def texts(example: Example) -> dict[str, Tensor]:
        mask = example.mask(example.texts, min(example.length, length))
        ids = example.ids(vocabulary, len(mask), mask.shape[1], without=vocabulary - 1)
        ids[torch.arange(len(ids)), mask.sum(1) - 1] = vocabulary - 1
        return {"input_ids": nn.functional.pad(ids * mask, (0, length - mask.shape[1]))}

    modules = Vision(visual), OpenClipText(model), OpenClipPair(model)
    yield from views_of_pair(images_of(visual, visual.image_size), texts, modules, is_any_length=False)
