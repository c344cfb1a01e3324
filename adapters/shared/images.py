"""Make tensors of images in the type the model wants, say what each position of a tower is, and number images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.shared.losses import labels_of
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.shared.texts import first_said
from ecoflap.core.contracts.records import IMAGE, Batch, Sample
from ecoflap.core.errors import DataError, ModelError

PREFIXES = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
"""What a model puts before the patches, by the names of the parameters in its embeddings."""


def image_seeds(pixel_values: Float[Tensor, "batch ..."]) -> Int64[Tensor, " batch"]:
    """Make a 63-bit number of each image's own bytes, which is the same in whatever batch and order it comes."""
    # numpy knows no bfloat16, so the bytes are taken before it sees the type
    rows = [image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for image in pixel_values]
    return torch.tensor([int.from_bytes(sha256(row).digest()[:8], "little") >> 1 for row in rows], dtype=torch.int64)


def images_of(samples: Sequence[Sample]) -> list[Any]:
    """Give the PIL images of all samples.

    :raises DataError: Where there is no sample, or one without an image in RGB.
    """
    if not samples:
        raise DataError("a batch needs at least one sample.")
    without = [number for number, sample in enumerate(samples) if sample.image is None]
    if without:
        have, wanted = ("several", "single images") if samples[without[0]].images else ("none", "images")
        raise DataError(
            f"this model looks at images, and {len(without)} of {len(samples)} samples have {have}. Calibrate it on a "
            f"dataset of {wanted}."
        )
    modes = sorted({mode for sample in samples if (mode := getattr(sample.image, "mode", "none")) != "RGB"})
    if modes:
        raise DataError(f"an image is wanted as a PIL image in RGB, and some are {', '.join(modes)}: convert('RGB').")
    return [sample.image for sample in samples]


def text_to_say(number: int, sample: Sample) -> str:
    """Give the first answer that is not blank, or else the text.

    :param number: The sample's place in its batch, for what is said of one that is wrong.
    :raises DataError: Where it has neither.
    """
    said = first_said(sample)
    if said is None:
        raise DataError(
            f"this model learns to say something of an image: sample {number} of a batch has neither a text nor an "
            f"answer. The datasets image_text and image_question_answer give both."
        )
    return said


def pixels_of(processor: Any, samples: Sequence[Sample]) -> Float[Tensor, "batch channels height width"]:
    """Make the tensor of images that a model of transformers reads.

    :param processor: An image processor, or a processor that has one; None where the model came without.
    :raises DataError: Where there is none, or it cannot make one tensor of the images.
    """
    read = getattr(processor, "image_processor", processor)
    if read is None or not hasattr(read, "preprocess"):
        found = "has none" if processor is None else f"has a {type(processor).__name__}, which reads no images"
        raise DataError(
            f"this model needs an image processor and {found}: put preprocessor_config.json beside its config.json, or "
            f"give ecoflap.run a processor."
        )
    images = images_of(samples)
    try:
        pixels: Tensor = read(images=images, return_tensors="pt")["pixel_values"]
    except (ValueError, TypeError, RuntimeError) as error:
        sizes = sorted({image.size for image in images})
        raise DataError(f"{type(read).__name__} cannot read the images, of sizes {sizes[:4]}: {error}") from error
    return pixels


def size_made_by(processor: Any) -> tuple[int, int]:
    """Measure the height and width of what an image processor of transformers makes of a square image."""
    from PIL import Image

    height, width = pixels_of(processor, [Sample(image=Image.new("RGB", (256, 256)))]).shape[-2:]
    return height, width


def labelled_images(processor: Any, samples: Sequence[Sample]) -> Batch:
    """Make the batch of a vision model of transformers alone, as :func:`labelled_batch` has it.

    :raises DataError: Where the images cannot be read, or some of them have no label.
    """
    return labelled_batch(pixels_of(processor, samples), samples)


def labelled_batch(pixel_values: Float[Tensor, "batch ..."], samples: Sequence[Sample]) -> Batch:
    """Put images beside a number for each of them (``seeds``), and ``labels`` where the samples have them.

    :raises DataError: Where some samples have a label and others have none.
    """
    labels = labels_of([sample.label for sample in samples])
    batch = {"pixel_values": pixel_values, "seeds": image_seeds(pixel_values)}
    return batch if labels is None else {**batch, "labels": labels}


def image_tokens(
    embeddings: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]
) -> Int8[Tensor, "batch tokens"]:
    """Say that every position is of the image: one for each patch, and those the embeddings put before them.

    :param embeddings: The module whose one convolution cuts the image into patches.
    """
    cut = patch_convolution(embeddings)
    patches = 1
    for axis in (0, 1):
        size, kernel, stride = pixel_values.shape[2 + axis], cut.kernel_size[axis], cut.stride[axis]
        patches *= (size - kernel) // stride + 1
    own = {name: parameter for name, parameter in embeddings.named_parameters() if name in PREFIXES}
    before = sum(parameter.numel() // parameter.shape[-1] for parameter in own.values())
    return torch.full((len(pixel_values), before + patches), IMAGE, dtype=torch.int8)


def patch_convolution(embeddings: nn.Module) -> nn.Conv2d:
    """Find the convolution that cuts an image into patches.

    :raises ModelError: Where there is none.
    """
    found = next((module for module in embeddings.modules() if isinstance(module, nn.Conv2d)), None)
    if found is None:
        raise ModelError(f"a {type(embeddings).__name__} has no convolution that cuts images into patches.")
    return found


def cast_for(
    embeddings: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """Put images into the type and on the device of the convolution that cuts them into patches."""
    return pixel_values.to(patch_convolution(embeddings).weight)


def cast_for_vision(
    model: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """Give images on the device and in the type of a model of transformers that has its vision tower as a part."""
    return cast_for(member(model, "vision_model.embeddings"), pixel_values)


@contextmanager
def as_large_as_wanted(pixel_values: Float[Tensor, "batch channels height width"]) -> Iterator[None]:
    """While a model runs, say where the size of its images comes from if it takes no such images.

    :raises DataError: In place of the ``ValueError`` that models of transformers raise.
    """
    try:
        yield
    except ValueError as error:
        height, width = pixel_values.shape[-2:]
        raise DataError(
            f"the model takes no images of {height}×{width}, which its processor makes: {error} Its "
            f"preprocessor_config.json says how large they are made."
        ) from error
