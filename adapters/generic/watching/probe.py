"""Watch a model run on small inputs of its own configuration, and take it apart by that."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.adapters.generic.watching.examples import (
    ROWS,
    SAID,
    Inputs,
    arguments_of,
    cacheless,
    image_inputs,
    patches_of,
    placed,
    text_inputs,
    with_text,
)
from ecoflap.adapters.generic.watching.layers_seen import VISION, Texts
from ecoflap.adapters.generic.watching.stacks import stacks_of
from ecoflap.adapters.generic.watching.taken_apart import TakenApart, take_apart
from ecoflap.adapters.generic.watching.watch import Watch, Watched, tensors_among
from ecoflap.adapters.hubs.experts import experts_one_by_one
from ecoflap.adapters.hubs.weightless import WithoutProducts, lent_weights
from ecoflap.adapters.shared.members import find
from ecoflap.adapters.views.cache import NO_CACHES, has_cache
from ecoflap.core.errors import EcoflapError, ModelError, one_line

QFORMER, QUESTION = "qformer", "question"
"""What a Q-Former reads that is given a question: its queries with the question after them, and that alone."""
SEEN = "an image and a text"
COUNTS = ("image_seq_length", "latent_query_num", "num_query_tokens", "num_image_tokens", "mm_tokens_per_image")
"""Settings that say how many places an image has in a text, of models that make the features in their forward alone."""
VECTORS = re.compile(r"(?:features:? |value tensor of shape \[)(\d+)")
"""How transformers says how many vectors it has of all images, where a text has places for others."""


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
            except EcoflapError:
                raise
            except Exception as error:  # whatever a model does with what is not for it
                problems.append(failure(error))
                continue
            unread = [*_unread(model, inputs, watched)]
            if not unread:
                return replace(take_apart(model, stacks, watched, texts), inputs=inputs)
            problems += unread
    raise ModelError(
        f"this {type(model).__name__} could not be watched as it runs, so nothing is known of its blocks. Tried with "
        f"small inputs made by its configuration: {'; '.join(dict.fromkeys(problems)) or 'none could be made'}"
    )


def run_small(model: nn.Module, inputs: Inputs) -> tuple[Any, str]:
    """Run a model on small inputs, with a cache where it has one.

    :return: What it made, all of zeros, and why there is no cache in it; nothing where there is.
    """
    with torch.no_grad(), lent_weights(model), experts_one_by_one(model), WithoutProducts():
        given, why_not = placed(model, inputs), NO_CACHES
        if has_cache(model):
            try:
                return model(**given, use_cache=True), ""
            except Exception as error:  # whatever a model does with what is not for it
                why_not = f"it does not run with a cache: {one_line(error)[:200]}"
        return model(**given, **cacheless(model)), why_not


def _unread(model: nn.Module, inputs: Inputs, watched: Watched) -> Iterator[str]:
    """Say which images and texts have no part in what a model says: a forward may pass over what it does not know."""
    known, used = arguments_of(model.forward), watched.made_of(watched.result)
    for name in (name for name, value in inputs.items() if value.is_floating_point() or name.endswith("input_ids")):
        if name not in known:
            yield f"its forward takes no {name}"
        elif name not in used:
            yield f"its logits do not depend on the {name} that it was given"


def failure(error: Exception) -> str:
    """Say what went wrong in a model's forward, and where in its code."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "modeling_" in frame.filename]
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {one_line(error)[:200].rstrip('.')}{at}"


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


def images_with_texts(model: nn.Module, processor: Any = None) -> Iterator[tuple[Inputs, Texts]]:
    """Yield images with a text, in every form that the model may take.

    :param processor: The model's own, if there is one.
    """
    config: Any = model.config
    for images in image_inputs(model, processor):
        for places in _places(model, images):
            inputs = with_text(model, images, places)
            length = inputs["input_ids"].shape[1]
            if getattr(config, "is_encoder_decoder", False):
                said = torch.full((ROWS, SAID - 4), 3)
                yield {**inputs, "decoder_input_ids": said}, Texts(ROWS, {"encoder": length, "decoder": SAID - 4}, SEEN)
            elif "qformer_input_ids" in inputs:
                asked = inputs["qformer_input_ids"].shape[1]
                both = {QFORMER: config.num_query_tokens + asked, QUESTION: asked}
                yield inputs, Texts(ROWS, {"language": length, **both}, SEEN)
            else:
                yield inputs, as_read(inputs)


def as_read(inputs: Inputs) -> Texts:
    """Say how long texts with images are, and the rows of patches, where the images come in such rows."""
    patches = patches_of(inputs)
    rows = {} if patches is None else {VISION: patches.shape[1]}
    return Texts(ROWS, {"language": inputs["input_ids"].shape[1], **rows}, SEEN)


def _places(model: nn.Module, images: Mapping[str, Tensor]) -> Iterator[int]:
    """Yield how many places an image may have in a text: as many as the model makes vectors of it."""
    counted = _vectors(model, images)
    if counted is not None:
        yield counted
    config: Any = model.config
    inner = (config, getattr(config, "vision_config", None), getattr(config, "text_config", None))
    numbers = (getattr(one, name, None) for one in inner for name in COUNTS)
    yield from dict.fromkeys(number for number in numbers if isinstance(number, int) and number != counted)
    missed = _missed(model, images)
    if missed is not None:
        yield missed
        width = find(config.get_text_config(), "hidden_size", int)
        yield from [missed // width] if width and not missed % width else []  # Mistral 3 counts their numbers
    yield 1


def _vectors(model: nn.Module, images: Mapping[str, Tensor]) -> int | None:
    """Count the vectors that a model makes of an image by itself; None where it has no way to, or fails at it."""
    for get in (find(model, "get_image_features"), find(model, "base_model.get_image_features")):
        with suppress(Exception), Watch(model, {}, {}):
            known = arguments_of(get)
            there = placed(model, images)
            given = {name: value for name, value in there.items() if name in known}
            made = get(**given) if given else get(*there.values())
            pooled = getattr(made, "pooler_output", None)
            found = tensors_among(getattr(made, "last_hidden_state", made) if pooled is None else pooled)
            return sum(one.numel() // one.shape[-1] for one in found) // ROWS
    return None


def _missed(model: nn.Module, images: Mapping[str, Tensor]) -> int | None:
    """Read off its complaint how many places a model misses for an image that has one; None where it says nothing.

    Versions before 5 need more than an image to make vectors of it by themselves, and add to them in their forward.
    """
    try:
        with Watch(model, {}, {}), experts_one_by_one(model):
            model(**placed(model, with_text(model, images, 1)), **cacheless(model))
    except Exception as error:  # whatever a model does with what is not for it
        said = VECTORS.search(str(error))
        return None if said is None else int(said[1]) // ROWS
    return None


def _watched(model: nn.Module, blocks: Mapping[str, nn.Module], inputs: Inputs) -> Watched:
    given = placed(model, inputs)
    watch = Watch(model, blocks, given)
    with experts_one_by_one(model), watch.on():
        try:
            output = model(**given, **cacheless(model))
        except Exception as error:
            _refuse_broken(model, watch, error)
            raise
    return watch.result(output.logits)


def _refuse_broken(model: nn.Module, watch: Watch, error: Exception) -> None:
    """Refuse a model whose forward stops after its head has run: whatever it is given, it would.

    :raises ModelError: Where it does.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    made = {id(model.get_submodule(run.name)) for run in watch.runs}
    if head is not None and id(head) in made:
        import transformers

        raise ModelError(
            f"the forward of {type(model).__name__} fails by itself: it had computed its logits, and then stopped with "
            f"{failure(error)}. That is a mistake of the model's own code, here with transformers "
            f"{transformers.__version__}, and nothing that it is given mends it; another version of transformers may."
        ) from error
