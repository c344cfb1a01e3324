"""Read easy-VQA out of its package: drawn shapes of one colour, and questions about them.

easy-VQA 1.0: Victor Zhou, 2019, MIT. Its training part has 4,000 images, of which :data:`HELD` are held out to watch
the training; its test part has 1,000, of which two questions each are asked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from parts import FILES, file_of, refuse_missing

HELD = 100
OF_EACH = 2
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


@dataclass(frozen=True)
class Asked:
    """One question.

    :param image: The number of its image in its part of easy-VQA.
    """

    image: int
    question: str
    answer: str

    @property
    def kind(self) -> str:
        """``colour``, ``shape`` or ``yes/no``."""
        return "shape" if self.answer in SHAPES else "colour" if self.answer in COLOURS else "yes/no"


def folder_of(part: str) -> Path:
    """Find ``train`` or ``test`` of the installed package."""
    refuse_missing(["easy_vqa"])
    found = str(file_of("easy_vqa")).removesuffix(FILES["easy_vqa"])
    return Path(found) / "data" / part


def image_file(part: str, image: int) -> Path:
    """Name the file of an image."""
    return folder_of(part) / "images" / f"{image}.png"


def by_image(part: str) -> dict[int, list[Asked]]:
    """Give the questions of each image of a part."""
    rows = json.loads((folder_of(part) / "questions.json").read_text(encoding="utf-8"))
    found: dict[int, list[Asked]] = {}
    for question, answer, image in rows:
        found.setdefault(image, []).append(Asked(image, question, answer))
    return found


def training(seed: int) -> tuple[dict[int, list[Asked]], dict[int, list[Asked]]]:
    """Split the training part into what is trained on and what is held out."""
    rows = by_image("train")
    held = set(Random(f"held out {seed}").sample(sorted(rows), HELD))
    return {i: rows[i] for i in rows if i not in held}, {i: rows[i] for i in rows if i in held}


def drawn_for_test(seed: int) -> list[Asked]:
    """Draw the questions of the test part: so many of each image, 2,000 in all."""
    random = Random(f"test {seed}")
    return [asked for _, rows in sorted(by_image("test").items()) for asked in random.sample(rows, OF_EACH)]


def labels(rows: Mapping[int, Sequence[Asked]], names: Sequence[str]) -> dict[int, int]:
    """Number what the answers about each image say that it shows, where they say it."""
    return {
        image: names.index(asked.answer) for image, of_it in rows.items() for asked in of_it if asked.answer in names
    }
