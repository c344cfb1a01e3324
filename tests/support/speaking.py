"""What evaluators of texts need for their tests: an adapter that says what it is told to, and samples to ask about."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pico_t5
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.records import Sample


@dataclass(frozen=True)
class Given:
    """A dataset of what it was given; counts how many samples were read."""

    samples: Sequence[Sample]
    read: list[int] = field(default_factory=list)

    def __call__(self, adapter: Any, model: nn.Module, note: Any) -> Iterator[Sample]:
        for number, sample in enumerate(self.samples):
            self.read.append(number)
            yield sample


class Parrot(LlamaAdapter):
    """Says to each question what it is told to: a text it ends, or, with a ``…`` at its end, one that is broken off."""

    def __init__(self, lines: Mapping[str | None, str]) -> None:
        super().__init__()
        self.processor = pico_t5.tokenizer()
        self.lines = lines
        self.asked: list[list[str | None]] = []
        self.generation: Generation | None = None

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        self.asked.append([sample.question for sample in samples])
        self.generation = generation
        return [self._said(self.lines[sample.question]) for sample in samples]

    def _said(self, line: str) -> Said:
        text = line.removesuffix("…")
        tokens = self.processor(text, add_special_tokens=False)["input_ids"]
        return Said(text.strip(), tuple(tokens), not line.endswith("…"))
