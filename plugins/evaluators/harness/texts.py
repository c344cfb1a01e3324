"""Answer a harness' requests for texts by a model's adapter, as the evaluators ``vqa`` and ``caption`` ask it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ecoflap.core.contracts.abilities import Generation
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.shared.model_calls import texts_said

PLACE = "<image>"
"""Where a task's text has its image; an adapter puts the image where its model wants it."""
LENGTHS = ("max_new_tokens", "max_gen_toks")
READ = {*LENGTHS, "until", "num_beams", "length_penalty"}
DRAWN = {"do_sample", "temperature", "top_p", "top_k"}
"""Settings of a draw, which say nothing where none is made."""


@dataclass(frozen=True)
class Asked:
    """Holds one request of a harness.

    :param text: What is asked.
    :param images: The images that belong to it.
    :param settings: How the text is to be made, in the task's own words.
    """

    text: str
    images: Sequence[Any]
    settings: Mapping[str, Any]

    def sample(self) -> Sample:
        """Give what an adapter is asked.

        :raises DataError: Where there are several images.
        """
        if len(self.images) > 1:
            raise DataError(f"a task shows {len(self.images)} images at once, and an adapter is asked about one.")
        images = [image.convert("RGB") for image in self.images]
        return Sample(image=images[0] if images else None, question=self.text.replace(PLACE, "").strip())

    def generation(self, otherwise: int) -> Generation:
        """Give how the text is to be made.

        :param otherwise: How many tokens it may have where the task does not say.
        :raises DataError: Where it is to be drawn at random, or by a setting that is not known here.
        """
        asked = self.settings
        unknown = sorted(set(asked) - READ - DRAWN)
        if unknown:
            raise DataError(f"a task sets {', '.join(unknown)} for its texts; an adapter knows {', '.join(READ)}.")
        if asked.get("do_sample"):
            raise DataError("a task wants its texts drawn at random (do_sample), and an adapter draws nothing.")
        most = next((int(asked[name]) for name in LENGTHS if asked.get(name) is not None), otherwise)
        penalty = asked.get("length_penalty")
        return Generation(most, 0, int(asked.get("num_beams") or 1), 1.0 if penalty is None else float(penalty))

    def cut(self, text: str) -> str:
        """Give what stands before the first of the texts that end an answer."""
        ends = self.settings.get("until") or ()
        for end in [ends] if isinstance(ends, str) else ends:
            text = text.split(end)[0] if end else text
        return text


def texts_of(model: nn.Module, adapter: Any, asked: Sequence[Asked], size: int, otherwise: int) -> list[str]:
    """Have a model make the text of each request, in their order; those made alike are made together.

    :param adapter: One that ``Generates``.
    :param size: How many are made at a time.
    :param otherwise: How many tokens a text may have where its task does not say.
    """
    found: dict[int, str] = {}
    groups: dict[Generation, list[int]] = {}
    for number, one in enumerate(asked):
        groups.setdefault(one.generation(otherwise), []).append(number)
    for generation, numbers in groups.items():
        samples = (asked[number].sample() for number in numbers)
        said = texts_said(model, adapter, samples, generation, size)
        found |= {number: asked[number].cut(one.text) for number, (_, one) in zip(numbers, said, strict=True)}
    return [found[number] for number in range(len(asked))]
