"""Pictures with the numbers of their classes, for evaluators that classify."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pico_clip

from ecoflap.core.contracts.records import Sample


@dataclass(frozen=True)
class Given:
    """Hands out what it was given, of classes that may have names."""

    given: tuple[Sample, ...] = ()
    names: tuple[str, ...] | None = None
    fetches: bool = False

    def __call__(self, adapter: Any, model: Any, note: Any) -> Iterator[Sample]:
        yield from self.given

    def classes(self) -> tuple[str, ...] | None:
        return self.names


def labelled(labels: list[int | None]) -> tuple[Sample, ...]:
    """Make a picture with each label."""
    pictures = pico_clip.pictures(len(labels))
    return tuple(Sample(image=one.image, label=label) for one, label in zip(pictures, labels, strict=True))
