"""Watch a model run on small inputs of its own configuration, and take it apart by that."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.adapters.generic.examples import ROWS, SAID, Inputs, arguments_of, image_inputs, text_inputs, with_text
from ecoflap.adapters.generic.layers_seen import Texts
from ecoflap.adapters.generic.stacks import stacks_of
from ecoflap.adapters.generic.taken_apart import TakenApart, take_apart
from ecoflap.adapters.generic.watch import Watch, Watched, tensors_of
from ecoflap.adapters.generic.weightless import lent_weights
from ecoflap.adapters.hubs.experts import experts_one_by_one
from ecoflap.core.errors import ModelError

QFORMER, QUESTION = "qformer", "question"
"""What a Q-Former reads that is given a question: its queries with the question after them, and that alone."""
COUNTS = ("image_seq_length", "latent_query_num", "num_query_tokens", "num_image_tokens", "mm_tokens_per_image")
"""Settings that say how many places an image has in a text, of models that make the features in their forward alone."""


def taken_apart_by(model: nn.Module, examples: Callable[[nn.Module], Iterable[tuple[Inputs, Texts]]]) -> TakenApart:
    """Take a model apart by the first of some examples that it can run on.

    :param examples: Makes inputs, each with the lengths of its texts.
    :raises ModelError: Where it runs on none.
    """
    stacks = [*stacks_of(model)]
    blocks = {name: block for stack in stacks for name, block in zip(stack.names, stack.blocks, strict=True)}
    problems: list[str] = []
    with torch.no_grad(), lent_weights(model):
        for inputs, texts in examples(model):
            try:
                watched = _watched(model, blocks, inputs)
            except Exception as error:  # whatever a model does with what is not for it
                problems.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
                continue
            return take_apart(model, stacks, watched, texts)
    raise ModelError(
        f"this {type(model).__name__} could not be watched as it runs, so nothing is known of its blocks. Tried with "
        f"small inputs made by its configuration: {'; '.join(dict.fromkeys(problems)) or 'none could be made'}"
    )


def texts_alone(model: nn.Module, tower: str = "language") -> Iterator[tuple[Inputs, Texts]]:
    """Yield a text for a model of one tower.

    :param tower: Its name.
    """
    inputs = text_inputs(model.config)
    yield inputs, Texts(ROWS, {tower: inputs["input_ids"].shape[1]})


def text_pairs(model: nn.Module) -> Iterator[tuple[Inputs, Texts]]:
    """Yield a text for an encoder and one for the decoder that reads it."""
    inputs = text_inputs(model.config)
    said = text_inputs(model.config, SAID)["input_ids"]
    yield {**inputs, "decoder_input_ids": said}, Texts(ROWS, {"encoder": inputs["input_ids"].shape[1], "decoder": SAID})


def images_with_texts(model: nn.Module) -> Iterator[tuple[Inputs, Texts]]:
    """Yield images with a text, in every form that the model may take."""
    config: Any = model.config
    for images in image_inputs(model):
        for places in _places(model, images):
            inputs = with_text(model, images, places)
            length = inputs["input_ids"].shape[1]
            if getattr(config, "is_encoder_decoder", False):
                said = torch.full((ROWS, SAID - 4), 3)
                yield {**inputs, "decoder_input_ids": said}, Texts(ROWS, {"encoder": length, "decoder": SAID - 4})
            elif "qformer_input_ids" in inputs:
                asked = inputs["qformer_input_ids"].shape[1]
                both = {QFORMER: config.num_query_tokens + asked, QUESTION: asked}
                yield inputs, Texts(ROWS, {"language": length, **both})
            else:
                yield inputs, Texts(ROWS, {"language": length})


def _places(model: nn.Module, images: Mapping[str, Tensor]) -> Iterator[int]:
    """Yield how many places an image may have in a text: as many as the model makes vectors of it."""
    counted: int | None = None
    get: Any = getattr(model, "get_image_features", None)
    if get is not None:
        with suppress(Exception), Watch(model, {}, {}):
            known = arguments_of(get)
            made = get(**{name: value for name, value in images.items() if name in known})
            found = tensors_of(getattr(made, "pooler_output", made))
            counted = sum(one.numel() // one.shape[-1] for one in found) // ROWS
    if counted is not None:
        yield counted
    config: Any = model.config
    inner = (config, getattr(config, "vision_config", None), getattr(config, "text_config", None))
    numbers = (getattr(one, name, None) for one in inner for name in COUNTS)
    yield from dict.fromkeys(number for number in numbers if isinstance(number, int) and number != counted)
    yield 1


def _watched(model: nn.Module, blocks: Mapping[str, nn.Module], inputs: Inputs) -> Watched:
    like = next(one for one in model.parameters() if one.is_floating_point())
    given: dict[str, Any] = {
        name: value.to(like.device, like.dtype if value.is_floating_point() else None) for name, value in inputs.items()
    }
    watch = Watch(model, blocks, given)
    extra = {"use_cache": False} if {"use_cache", "kwargs"} & arguments_of(model.forward) else {}
    with experts_one_by_one(model), watch.on():
        output = model(**given, **extra)
    return watch.result(output.logits)
