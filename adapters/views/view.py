"""What every family's views share: two examples of each input, the axes that vary, and parts of a model by themselves.

A view's module calls the model's own modules, without a cache unless the cache is what it is for. Its ``forward`` names
its inputs; those of a cache, as many as the model has layers, come last, as ``*past``.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ecoflap.core.contracts.records import View

BATCH, IMAGES, TEXTS = "batch", "image_batch", "text_batch"
SEQUENCE, SAID, PAST, TOTAL = "sequence", "decoder_sequence", "past", "past_and_sequence"
TEXT_AXES = {0: BATCH, 1: SEQUENCE}


@dataclass(frozen=True)
class Example:
    """Sizes of one example and its random numbers. No two sizes are equal, so that none is taken for another.

    :param batch: Images, or rows of a text.
    :param texts: Rows of texts that are compared with the images.
    :param length: Of a text, in tokens.
    :param said: Of what a decoder was given, in tokens.
    :param past: Of what is in a cache, in tokens.
    """

    batch: int
    texts: int
    length: int
    said: int
    past: int
    seed: int

    def ids(
        self, vocabulary: int, rows: int, length: int, *, without: int | None = None
    ) -> Int64[Tensor, "rows length"]:
        """Tokens of any kind.

        :param without: A token that has a meaning of its own, which is not drawn.
        """
        if without is None:
            return torch.randint(vocabulary, (rows, length), generator=self._drawn())
        drawn = torch.randint(vocabulary - 1, (rows, length), generator=self._drawn())
        return drawn + (drawn >= without).long()

    def mask(self, rows: int, length: int) -> Int64[Tensor, "rows length"]:
        """Padding on the right: each row a token shorter than the one before, down to half the length."""
        lengths = length - torch.arange(rows) % (1 + length // 2)
        return (torch.arange(length) < lengths[:, None]).long()

    def numbers(self, like: Tensor, *shape: int) -> Float[Tensor, "..."]:
        """Standard normal, in another tensor's type; on the CPU."""
        return torch.randn(shape, generator=self._drawn()).to(like.dtype)

    def _drawn(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


EXAMPLES = Example(2, 3, 8, 5, 6, seed=0), Example(3, 4, 11, 7, 9, seed=1)


def view(
    name: str,
    module: nn.Module,
    made: Callable[[Example], Mapping[str, Tensor]],
    outputs: tuple[str, ...],
    dynamic: Mapping[str, Mapping[int, str]],
) -> View:
    """:param made: From an example's sizes to the inputs in their order."""
    inputs, other = (dict(made(example)) for example in EXAMPLES)
    return View(name, module.eval(), inputs, other, outputs, {key: dynamic.get(key, {}) for key in inputs})


def without(model: nn.Module, *children: str) -> nn.Module:
    """The same module without some of its children: another object, of the same class, that holds the same weights.

    So a model's own methods run, and what they have no use for is not written to a file.
    """
    rest: Any = copy(model)
    rest._modules = {name: child for name, child in model._modules.items() if name not in children}
    return rest  # type: ignore[no-any-return]


def square(size: Any) -> tuple[int, int]:
    """Height and width of what is written as one number or as two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
