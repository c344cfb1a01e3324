"""Make what the views of all families share: examples of each input, and a model without what a view does not use.

A view's module calls the model's own modules, without a cache unless the cache is what it is for. Its ``forward`` names
its inputs; those of a cache, as many as the model has layers, come last, as ``*past``.
"""

from collections.abc import Callable, Collection, Mapping
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
    """Holds the sizes of one example and its random numbers. No two sizes are equal, so that none is taken for another.

    :param batch: How many images there are, or rows of a text.
    :param texts: How many texts are compared with the images.
    :param length: The length of a text in tokens.
    :param said: How many tokens a decoder was given.
    :param past: How many tokens are in a cache.
    :param seed: What its random numbers follow from.
    """

    batch: int
    texts: int
    length: int
    said: int
    past: int
    seed: int

    def ids(
        self, vocabulary: int, rows: int, length: int, *, without: Collection[int] = ()
    ) -> Int64[Tensor, "rows length"]:
        """Draw tokens.

        :param without: Tokens with a meaning of their own, which are left out.
        """
        drawn = torch.randint(vocabulary - len(without), (rows, length), generator=self._drawn())
        for token in sorted(without):
            drawn += (drawn >= token).long()
        return drawn

    def mask(self, rows: int, length: int) -> Int64[Tensor, "rows length"]:
        """Make a mask with padding on the right: each row is a token shorter than the one before, down to half."""
        lengths = length - torch.arange(rows) % (1 + length // 2)
        return (torch.arange(length) < lengths[:, None]).long()

    def numbers(self, like: Tensor, *shape: int) -> Float[Tensor, "..."]:
        """Draw standard normal numbers, on the CPU and in another tensor's type."""
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
    """Make a view with two examples of its inputs.

    :param made: Gives the inputs of an example, in their order.
    :param dynamic: By input, which of its axes vary and by what name; an input that is not named has none.
    """
    inputs, other = (dict(made(example)) for example in EXAMPLES)
    return View(name, module.eval(), inputs, other, outputs, {key: dynamic.get(key, {}) for key in inputs})


def without(model: nn.Module, *paths: str) -> nn.Module:
    """Copy a module without what is at some paths: other objects on the way there, of the same class, with its weights.

    So a model's own methods run, and what they have no use for is not written to a file.
    """
    rest: Any = copy(model)
    rest._modules = dict(model._modules)
    for path in paths:
        child, _, inner = path.partition(".")
        if inner and rest._modules.get(child) is not None:
            rest._modules[child] = without(rest._modules[child], inner)
        else:
            rest._modules.pop(child, None)
    return rest  # type: ignore[no-any-return]


def square(size: Any) -> tuple[int, int]:
    """Give height and width of what is written as one number or as two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
