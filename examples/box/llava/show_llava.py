"""Draw what models say: test images with a question each, and under it every model's answer, right or wrong.

    python examples/box/llava/show_llava.py SWEEP answers.png

SWEEP is the folder of a sweep of ``quickstart-llava``, whose runs keep their packed models. The questions are drawn by
a seed, as many of each type; none is chosen for how it is answered.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from check_llava import said
from PIL import Image
from questions import Asked, drawn_for_test, image_file

import ecoflap

HERE = Path(__file__).parent
OF_EACH = 4
RIGHT, WRONG = "#1a7f37", "#cf222e"


def drawn(seed: int) -> list[Asked]:
    """Draw questions, as many of each type, each on another image."""
    asked = drawn_for_test(0)
    Random(f"shown {seed}").shuffle(asked)
    found: list[Asked] = []
    for kind in ("shape", "colour", "yes/no"):
        images = {one.image for one in found}
        fits = {one.image: one for one in asked if one.kind == kind and one.image not in images}
        found += list(fits.values())[:OF_EACH]
    return found


def answers(sweep: Path, asked: Sequence[Asked]) -> dict[str, list[str]]:
    """Ask the dense model and the model of each run."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    dense = HERE / "built" / "model"
    processor = AutoProcessor.from_pretrained(dense, local_files_only=True)
    images = [one.image for one in asked]
    model: Any = LlavaForConditionalGeneration.from_pretrained(dense, local_files_only=True).eval()
    found = {"dense": said(model, processor, asked, images)}
    for folder in sorted(sweep.glob("*/exports/safetensors")):
        model = ecoflap.load_model(folder)
        found[name_of(folder.parents[1])] = said(model, processor, asked, images)
    return found


def name_of(run: Path) -> str:
    """Name a run by its method and sparsity."""
    words = run.name.split("-sparsity-")
    return f"{words[0]} {100 * float(words[1].split('-')[0]):.0f} %" if len(words) > 1 else run.name


def draw(file: Path, asked: Sequence[Asked], found: Mapping[str, Sequence[str]]) -> None:
    """Draw the images in rows, a type of question a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * OF_EACH, (2.0 + 0.2 * len(found)) * len(asked) / OF_EACH), layout="constrained")
    places = figure.subplots(len(asked) // OF_EACH, OF_EACH).flat
    for number, (axes, one) in enumerate(zip(places, asked, strict=True)):
        axes.imshow(Image.open(image_file("test", one.image)))
        axes.set_axis_off()
        axes.set_title(one.question, fontsize=9)
        for line, (name, texts) in enumerate(found.items()):
            colour = RIGHT if texts[number] == one.answer else WRONG
            height = -0.08 - 0.1 * line
            axes.text(
                0.5, height, f"{name}: {texts[number]}", color=colour, fontsize=8, ha="center", transform=axes.transAxes
            )
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what the LLaVA in the box says, dense and pruned.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    asked = drawn(given.seed)
    draw(given.file, asked, answers(given.sweep, asked))
    print(given.file)


if __name__ == "__main__":
    main()
