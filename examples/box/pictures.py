"""The pictures of the box in memory, and how they are varied in training: the test shows another drawing style."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

Uniform = Callable[..., Tensor]
"""Random numbers, one row a picture: low, high, further axes."""
Pixels = Float[Tensor, "image 3 64 64"]
"""From 0 to 1."""
ONE_WAY = frozenset(
    {"left", "right", "arrow", "arrows", "facing", "clock", "o'clock", "button", "flag", "keycap", "sign", "mark"}
    | {"input", "letter"}
)
"""Words in captions of what is another thing in a mirror, or none."""
ONE_WAY_KINDS = frozenset(
    {"country flag", "subdivision flag", "flag", "arrow", "alphanum", "keycap", "math", "time", "zodiac", "punctuation"}
)


@dataclass(frozen=True)
class Split:
    """All that is said and asked of the pictures of one part.

    :param pixels: Of each picture, in the order of the others.
    :param sources: ``twitter``, ``google`` or ``easy``.
    :param captions: Of each picture; of an emoji first the label, then the keywords.
    :param questions: Of each picture: question, answer, type.
    """

    pixels: UInt8[Tensor, "image 3 64 64"]
    sources: Sequence[str]
    captions: Sequence[Sequence[str]]
    questions: Sequence[Sequence[tuple[str, str, str]]]

    def of(self, *sources: str) -> "Split":
        """The pictures of some sources alone."""
        places = [place for place, source in enumerate(self.sources) if source in sources]
        return Split(
            self.pixels[places],
            [self.sources[place] for place in places],
            [self.captions[place] for place in places],
            [self.questions[place] for place in places],
        )

    def keywords(self, place: int) -> list[str]:
        captions = self.captions[place]
        return captions[1].split(", ") if len(captions) > 1 else []

    def answer(self, place: int, kind: str) -> str | None:
        """The answer to the first question of a type that begins so."""
        return next((answer for _, answer, of in self.questions[place] if of.startswith(kind)), None)


def read_split(folder: Path, name: str) -> Split:
    """As ``make_data.py`` writes it."""
    said = json.loads((folder / f"{name}_captions.json").read_text(encoding="utf-8"))
    asked = json.loads((folder / f"{name}_questions.json").read_text(encoding="utf-8"))
    answered = json.loads((folder / f"{name}_annotations.json").read_text(encoding="utf-8"))["annotations"]
    images = asked["images"]
    captions: dict[int, list[str]] = {image["id"]: [] for image in images}
    questions: dict[int, list[tuple[str, str, str]]] = {image["id"]: [] for image in images}
    for row in said["annotations"]:
        captions[row["image_id"]].append(row["caption"])
    for row, answer in zip(asked["questions"], answered, strict=True):
        assert row["question_id"] == answer["question_id"]
        whole = (row["question"], answer["multiple_choice_answer"], answer["question_type"])
        questions[row["image_id"]].append(whole)
    pixels = [np.asarray(Image.open(folder / "images" / image["file_name"]).convert("RGB")) for image in images]
    return Split(
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        [image["source"] for image in images],
        list(captions.values()),
        list(questions.values()),
    )


def mirrors(split: Split) -> Bool[Tensor, " image"]:
    """Which pictures stay what they are in a mirror."""
    return torch.tensor(
        [
            split.answer(place, "emoji kind") not in ONE_WAY_KINDS
            and not ONE_WAY & set(" ".join(split.captions[place]).replace(",", " ").replace(":", " ").split())
            for place in range(len(split.sources))
        ]
    )


def varied_emoji(pixels: Pixels, mirrored: Bool[Tensor, " image"], random: Generator) -> Pixels:
    """Moved, turned, scaled and mirrored; other colours, a light from one side, blurred, with a part covered.

    All of it acts on what differs from the white ground, which so stays white.
    """
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    ink = warped(1 - pixels, uniform, mirrored, zoom=(0.87, 1.2), turn=0.2, shift=0.1, pad="zeros")
    light = ink.mean(1, keepdim=True)
    ink = light + (ink - light) * uniform(0.5, 1.5, 1, 1, 1)
    ink = ink.clamp(0, 1) ** torch.exp(uniform(-0.35, 0.35, 1, 1, 1)) * uniform(0.8, 1.2, 3, 1, 1)
    across = torch.linspace(-1, 1, 64)
    shade = uniform(-0.2, 0.2, 1, 1, 1) * across + uniform(-0.2, 0.2, 1, 1, 1) * across[:, None]
    ink = torch.where(uniform(0, 1, 1, 1, 1) < 0.4, blurred(ink), ink * (1 + shade))
    return 1 - (ink * uncovered(uniform)).clamp(0, 1)


def varied_shapes(pixels: Pixels, random: Generator) -> Pixels:
    """Moved and mirrored alone: colours are asked for, and a turned rectangle is another one."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    return warped(pixels, uniform, torch.ones(count, dtype=torch.bool), (1.0, 1.0), 0.0, 0.125, "border")


def warped(
    pixels: Pixels,
    uniform: Uniform,
    mirrored: Bool[Tensor, " image"],
    zoom: tuple[float, float],
    turn: float,
    shift: float,
    pad: str,
) -> Pixels:
    """:param turn: At most, in radians. :param shift: At most, of half the picture."""
    angle, side = uniform(-turn, turn), torch.where((uniform(0, 1) < 0.5) & mirrored, -1.0, 1.0)
    wide, high = uniform(*zoom), uniform(0.92, 1.08) if turn else 1.0
    row_x = torch.stack([side * wide * torch.cos(angle), -wide * torch.sin(angle), uniform(-shift, shift)], 1)
    row_y = torch.stack(
        [side * wide * high * torch.sin(angle), wide * high * torch.cos(angle), uniform(-shift, shift)], 1
    )
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode=pad, align_corners=False)


def blurred(pixels: Pixels) -> Pixels:
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    return F.conv2d(pixels, kernel, padding=1, groups=3)


def uncovered(uniform: Uniform) -> Float[Tensor, "image 1 64 64"]:
    """0 in a square of a quarter of the pictures, 1 elsewhere."""
    at = torch.arange(64.0)
    half, used = uniform(4, 11, 1), uniform(0, 1, 1) < 0.25
    inside_x = (at - uniform(0, 64, 1)).abs() < half
    inside_y = (at - uniform(0, 64, 1)).abs() < half
    covered = inside_x[:, None, :] & inside_y[:, :, None] & used[:, :, None]
    return (~covered[:, None]).float()
