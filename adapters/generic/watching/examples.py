"""Make small inputs for a model by its configuration and by what its forward takes, to watch it run."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.adapters.shared.members import find

ROWS, SAID = 2, 11
"""How many texts there are, and how many of their tokens are no image's."""
ASKED = 2
"""How many tokens more a Q-Former reads."""
Inputs = dict[str, Tensor]


def arguments_of(function: Any) -> set[str]:
    """Name the arguments of a model's forward."""
    return set(signature(function).parameters)


def cacheless(model: nn.Module) -> dict[str, bool]:
    """Give the argument by which a model's forward keeps nothing of a text; none where it takes no such argument."""
    return {"use_cache": False} if {"use_cache", "kwargs"} & arguments_of(model.forward) else {}


def placed(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Put the tensors among inputs where a model is, and images into its type."""
    like = next(one for one in model.parameters() if one.is_floating_point())

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(like.device, like.dtype if value.is_floating_point() else None)

    return {name: there(value) for name, value in inputs.items()}


def settings(config: Any, ends: tuple[str, ...]) -> Iterator[int]:
    """Yield every number of a configuration, and of those inside it, whose name ends so."""
    for name, value in vars(config).items():
        if name.endswith(ends):
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
        elif hasattr(value, "to_dict"):
            yield from settings(value, ends)


def a_word(config: Any) -> int:
    """Give the number of a token that has no meaning of its own."""
    special = set(settings(config, ("_token_id", "_token_index", "_id", "_index")))
    return next(number for number in range(3, len(special) + 4) if number not in special)


def image_token(config: Any) -> int | None:
    """Give the number of the token that stands in a text at each place of an image."""
    names = ("image_token_id", "image_token_index", "media_token_id", "img_token_id", "image_context_token_id")
    return next((found for name in names if (found := find(config, name, int)) is not None), None)


def text_inputs(config: Any, length: int = SAID + 2) -> Inputs:
    """Make texts of one word said again and again."""
    ids = torch.full((ROWS, length), a_word(config))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def image_inputs(model: nn.Module, processor: Any = None) -> Iterator[Inputs]:
    """Yield images in every form that the model's forward may take, the likeliest first.

    :param processor: The model's own, which knows how large its images are where its configuration does not say so.
    """
    config: Any = model.config
    inner = (find(config, name) for name in ("vision_config", "encoder.vision_config", "encoder"))
    seen = next((one for one in inner if find(one, "patch_size") is not None), find(config, "vision_config") or config)
    known = arguments_of(model.forward)
    channels = find(seen, "num_channels", int) or find(seen, "in_channels", int) or 3
    if "image_grid_thw" in known:
        inputs = _in_patches(seen, channels)
        inputs |= {"image_merge_sizes": torch.ones(ROWS, dtype=torch.int64)} if "image_merge_sizes" in known else {}
        yield inputs
        yield inputs | {"pixel_values": inputs["pixel_values"].reshape(-1, channels, seen.patch_size, seen.patch_size)}
        return
    if known & {"image_position_ids", "spatial_shapes", "image_patches"}:
        yield _in_rows(config, seen, channels, known)
        return
    high, wide = _sides(seen, processor)
    plain = {"pixel_values": torch.ones(ROWS, channels, high, wide)}
    sizes = {"image_sizes": torch.tensor([[high, wide]] * ROWS)}
    if "aspect_ratio_ids" in known:
        yield _in_tiles_of_ratios(seen, channels, high)
    if find(config, "image_grid_pinpoints") is not None:
        yield {"pixel_values": torch.ones(ROWS, _tiles(config, high), channels, high, wide), **sizes}
    if "pixel_attention_mask" in known:
        yield {"pixel_values": torch.ones(ROWS, 1, channels, high, wide)}
    if "image_embeds_position_mask" not in known and "image_sizes" in known:
        yield {**plain, **sizes}
    yield plain
    yield {"pixel_values": torch.ones(ROWS, 1, channels, high, wide)}


def with_text(model: nn.Module, images: Mapping[str, Tensor], places: int) -> Inputs:
    """Put a text beside images, with so many places for each.

    :return: The arguments of the model's forward.
    """
    config: Any = model.config
    known, token, word = arguments_of(model.forward), image_token(config), a_word(config)
    row = [word if token is None else token] * places + [word] * SAID
    ids = torch.tensor([row] * ROWS)
    at_image = torch.arange(len(row)) < places
    marks = at_image.long().expand(ROWS, -1)
    inputs: Inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
    inputs |= {name: marks for name in known if name.endswith("token_type_ids")}
    if "image_embeds_position_mask" in known:
        inputs["image_embeds_position_mask"] = marks.bool()
    if "qformer_input_ids" in known:
        inputs["qformer_input_ids"] = torch.full((ROWS, SAID + ASKED), word)
        inputs["qformer_attention_mask"] = torch.ones_like(inputs["qformer_input_ids"])
    if "cross_attention_mask" in known and "aspect_ratio_mask" in images:
        tiles = images["aspect_ratio_mask"].shape[-1]
        inputs["cross_attention_mask"] = torch.ones(ROWS, len(row), 1, tiles, dtype=torch.int64)
    return inputs


def _sides(seen: Any, processor: Any) -> tuple[int, int]:
    """Give height and width of an image in pixels: those that the model was made for, or that its processor makes."""
    size = find(seen, "image_size")
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[-1])
    side = size if isinstance(size, int) else _made_by(processor) or 4 * (find(seen, "patch_size", int) or 14)
    return side, side


def _made_by(processor: Any) -> int | None:
    """Give the side of what a processor makes of an image, as Florence-2's configuration has none.

    None where there is no processor, or where it makes no square images.
    """
    prepare = getattr(processor, "image_processor", None)
    if prepare is None:
        return None
    from PIL import Image

    with suppress(Exception):  # one that wants more than an image, or makes no tensor of it
        made = prepare(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
        *others, height, width = made.shape
        return int(width) if len(others) > 1 and height == width else None
    return None


def _tiles(config: Any, size: int) -> int:
    """Count the tiles into which an image of the vision tower's own size is cut, and the whole of it."""
    fit = [point for point in config.image_grid_pinpoints if min(point) >= size]
    best = min(fit or config.image_grid_pinpoints, key=lambda point: point[0] * point[1])
    return 1 + int(best[0] // size) * int(best[1] // size)


def _in_patches(seen: Any, channels: int) -> Inputs:
    patch, deep = seen.patch_size, find(seen, "temporal_patch_size", int) or 1
    side = 2 * (find(seen, "spatial_merge_size", int) or 1)
    patches = torch.ones(ROWS * side * side, channels * deep * patch * patch)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, side, side]] * ROWS)}


def _in_rows(config: Any, seen: Any, channels: int, known: set[str]) -> Inputs:
    """Make rows of patches, one for each image, with what says where each of them lies."""
    names = (find(one, name, int) for one in (seen, config) for name in ("pooling_kernel_size", "downsample_factor"))
    side, patch = 2 * next((number for number in names if number is not None), 1), find(seen, "patch_size", int) or 1
    patches = torch.ones(ROWS, side * side, channels * patch * patch)
    if "image_patches" in known:
        return {"image_patches": patches}
    if "image_position_ids" in known:
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1)
        return {"pixel_values": patches, "image_position_ids": places.expand(ROWS, -1, 2)}
    return {
        "pixel_values": patches,
        "spatial_shapes": torch.tensor([[side, side]] * ROWS),
        "pixel_attention_mask": torch.ones(ROWS, side * side, dtype=torch.int64),
    }


def patches_of(batch: Mapping[str, Any]) -> Tensor | None:
    """Say which patches of a row are an image's, for models that read images as rows of patches, padded; else None."""
    mask: Tensor | None = batch.get("pixel_attention_mask")
    places: Tensor | None = batch.get("image_position_ids")
    flattened: Tensor | None = batch.get("flattened_patches")
    if flattened is not None:
        return flattened.ne(0).any(-1)
    if places is not None:
        return (places != -1).all(-1)
    pixels: Tensor | None = batch.get("pixel_values")
    is_of_tiles = pixels is not None and pixels.ndim > 3
    return mask.bool() if mask is not None and mask.ndim == 2 and not is_of_tiles else None


def _in_tiles_of_ratios(seen: Any, channels: int, size: int) -> Inputs:
    tiles = seen.max_num_tiles
    return {
        "pixel_values": torch.ones(ROWS, 1, tiles, channels, size, size),
        "aspect_ratio_ids": torch.ones(ROWS, 1, dtype=torch.int64),
        "aspect_ratio_mask": torch.ones(ROWS, 1, tiles, dtype=torch.int64),
    }
