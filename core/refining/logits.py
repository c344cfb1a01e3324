"""Logits as a model's loss sees them: every loss of an adapter's comes to ``F.cross_entropy`` in the end.

Watching that one function gives the logits of any family at the positions that its loss is about, without padding and
chunk by chunk, and lets the divergence from other logits stand in the place of the loss.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any

from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from ecoflap.core.errors import ModelError
from ecoflap.core.guards.untouched import writes

CrossEntropy = Callable[..., Tensor]
Divergence = Callable[[Tensor, Tensor], Tensor]
"""Of logits ``[rows, classes]`` from others of that shape, a number for each row."""


class DenseLogits:
    """The logits of one batch of the dense model, chunk by chunk as its loss made them."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[int, int], list[Float32[Tensor, "rows classes"]]] = {}
        self._asked: dict[tuple[int, int], int] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep what every cross entropy is given."""

        def keep(logits: Tensor, targets: Tensor) -> None:
            self._chunks.setdefault(_place(targets), []).append(logits)

        with seen_by_losses(keep):
            yield

    @contextmanager
    def compared(self, divergence: Divergence) -> Iterator[None]:
        """Let a divergence from these logits be what every cross entropy gives, in the backward too.

        :raises ModelError: Where it writes into them: a loss may ask for them again, and a copy is a vocabulary wide.
        """
        self._asked.clear()

        def diverge(original: CrossEntropy, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
            dense = self._next(targets)
            before = writes(dense)
            found = divergence(dense, logits.float())
            if writes(dense) != before:
                raise _written(divergence)
            if found.shape != logits.shape[:1]:
                raise _no_number_a_row(found, len(logits))
            return found

        with _in_place_of_cross_entropy(diverge):
            yield

    @property
    def is_empty(self) -> bool:
        """Say whether no cross entropy was computed: the loss is none of logits."""
        return not self._chunks

    def _next(self, targets: Tensor) -> Float32[Tensor, "rows classes"]:
        """Give the dense logits for a chunk of targets.

        A chunk is known by where its targets lie among all: in a backward a loss may compute its chunks again, in
        another order. Of two cross entropies with the same targets, such as that of images and that of texts, the
        first asked is the first that was kept.
        """
        chunks = self._chunks.get(_place(targets))
        if chunks is None:
            raise ModelError("the loss of the pruned model is of other targets than that of the dense model was")
        asked = self._asked.get(_place(targets), 0)
        self._asked[_place(targets)] = asked + 1
        return chunks[asked % len(chunks)].to(targets.device)


@contextmanager
def seen_by_losses(see: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Give what every loss is made of: logits ``[rows, classes]`` in float32, without a graph, and each row's target.

    The rows are those that the loss is about, in the batch's order; a long loss gives them piece by piece.
    """

    def pass_on(original: CrossEntropy, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        see(logits.detach().float(), targets.detach())
        return original(logits, targets, **options)

    with _in_place_of_cross_entropy(pass_on):
        yield


def kl_of_rows(dense: Float[Tensor, "rows classes"], logits: Float[Tensor, "rows classes"]) -> Float[Tensor, " rows"]:
    """Compute Σ_c p(c) · (log p(c) − log q(c)) of each row, in nats, p being the dense model's probabilities.

    :param dense: Logits, or the logarithms of p, which are logits too.
    """
    return functional.kl_div(logits.log_softmax(-1), dense.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def _no_number_a_row(found: Tensor, rows: int) -> ModelError:
    return ModelError(
        f"the divergence that held_against_dense is given returned a tensor of {tuple(found.shape)}; it gives a number "
        f"for each of the {rows} rows, and the loss takes their mean"
    )


def _written(divergence: Divergence) -> ModelError:
    name = getattr(divergence, "__name__", type(divergence).__name__)
    return ModelError(
        f"the divergence {name} wrote into the dense model's logits, the first that it is given, which it may be given "
        f"again. Have it write into what it has made itself: dense.softmax(-1).log_() and not dense.sub_(…)"
    )


def _place(targets: Tensor) -> tuple[int, int]:
    return int(targets.storage_offset()), targets.numel()


@contextmanager
def _in_place_of_cross_entropy(other: Callable[..., Tensor]) -> Iterator[None]:
    """Put something in the place of ``F.cross_entropy``, for all threads: on a GPU the backward has its own."""
    original = functional.cross_entropy
    taken = signature(original)

    @wraps(original)
    def cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
        given = taken.bind(*args, **kwargs).arguments
        # Who asks for one number of all rows does not compute a loss of ours, and would take a row's for the whole.
        if given.get("reduction") != "none":
            return original(*args, **kwargs)
        return other(original, given.pop("input"), given.pop("target"), **given)

    functional.cross_entropy = cross_entropy
    try:
        yield
    finally:
        functional.cross_entropy = original
