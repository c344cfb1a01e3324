"""What the vision tower makes of every image, computed once: the tower is not trained, so training need not run it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from parts import SIZE, VISION, read_vision
from PIL import Image, ImageOps
from questions import image_file
from torch import Tensor

TOKENS = (SIZE // VISION["patch_size"]) ** 2
"""Tokens that an image becomes."""
LAYER = -2
"""The last block but one, as LLaVA has it."""
COPIES = {"plain": (False, None), "mirrored": (True, 1), "moved": (False, 2)}
"""How an image of the training part is looked at: mirrored or not, and the seed by which it is moved."""
SHIFT = 4
"""Pixels of 64 that an image is moved by at most."""


SETTINGS = {
    "do_resize": True, "size": {"shortest_edge": SIZE}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE}, "do_rescale": True, "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_convert_rgb": True,
}  # fmt: skip
"""How pixels are made of an image: ImageNet's mean and deviation, as DINOv2 was trained."""


def varied(image: Image.Image, mirrored: bool, random: np.random.Generator | None) -> Image.Image:
    """Mirror an image and move it; what comes in from outside is like the edge."""
    image = ImageOps.mirror(image) if mirrored else image
    if random is None:
        return image
    right, down = random.integers(0, 2 * SHIFT + 1, 2)
    wide = np.pad(np.asarray(image), ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    return Image.fromarray(wide[down : down + image.height, right : right + image.width])


def look(
    tower: Any, part: str, images: Sequence[int], mirrored: bool, seed: int | None
) -> Float[Tensor, "image patch width"]:
    """Give the patches of images in bfloat16, as the whole model computes them."""
    from transformers import BitImageProcessor  # with torchvision, faster than the one that ships

    processor, random = BitImageProcessor(**SETTINGS), None if seed is None else np.random.default_rng(seed)
    found = []
    for start in range(0, len(images), 100):
        opened = [Image.open(image_file(part, image)).convert("RGB") for image in images[start : start + 100]]
        shown = [varied(image, mirrored, random) for image in opened]
        pixels = processor(shown, return_tensors="pt").pixel_values.bfloat16()
        with torch.no_grad():
            found.append(tower(pixels, output_hidden_states=True).hidden_states[LAYER][:, 1:])
    return torch.cat(found)


def patches(cache: Path, images: Sequence[int]) -> dict[str, Float[Tensor, "image patch width"]]:
    """Give the patches of every copy of the training part, from files where they have been computed before."""
    cache.mkdir(parents=True, exist_ok=True)
    files = {copy: cache / f"{copy}.pt" for copy in COPIES}
    tower = None if all(file.is_file() for file in files.values()) else read_vision().bfloat16()
    for copy, file in files.items():
        if not file.is_file():
            began = time.perf_counter()
            torch.save(look(tower, "train", images, *COPIES[copy]), file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
            print(f"{copy}: {time.perf_counter() - began:.0f} s", flush=True)
    return {copy: torch.load(file, weights_only=True) for copy, file in files.items()}
