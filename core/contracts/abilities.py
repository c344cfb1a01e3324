"""What a model can be asked for beside its loss. An adapter offers it by having the methods; nothing here computes.

An evaluator names what it needs in its class attribute ``wants``, and the plan says where an adapter does not offer it.
An adapter that offers something for some of its models only has ``refuses(model, ability) -> str | None`` too: why this
model cannot, in words, or None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.records import Sample


@dataclass(frozen=True)
class Generation:
    """How a text is made, by the names that transformers has. Nothing is drawn at random.

    :param max_new_tokens: Where a text is broken off that does not end by itself.
    :param min_new_tokens: Before this many it may not end.
    :param num_beams: How many beginnings are gone on with; 1 takes the likeliest token each time.
    :param length_penalty: A beam's log-likelihood is divided by its length to this power.
    """

    max_new_tokens: int = 10
    min_new_tokens: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0


class Said(NamedTuple):
    """A text that a model made.

    :param text: Without special tokens, and without blanks around it.
    :param tokens: Those of the text, without what stands before it and after it.
    :param ended: Whether the model ended it, rather than being broken off.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool


class Generates(Protocol):
    """Says something of an image, or goes on with a text."""

    does: ClassVar[str] = "make texts"

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """One text a sample, in their order, from its image and its question; the same whatever is in the batch."""
        ...

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """How the model would say it, without what ends it."""
        ...


class Compares(Protocol):
    """Tells how well a text fits an image, from one vector or several of each."""

    does: ClassVar[str] = "compare images with texts"

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images ..."]: ...
    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]: ...

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images ..."], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """Larger is more alike. What both were embedded as goes in; nothing else of the batch changes it."""
        ...


class Classifies(Protocol):
    """Tells one of a fixed list of classes."""

    does: ClassVar[str] = "classify images"

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images classes"]:
        """By the number of the class, as labels have it."""
        ...


ABILITIES: tuple[Any, ...] = (Generates, Compares, Classifies)


def offers(adapter: Any, ability: Any) -> bool:
    """Whether an adapter, or its factory, has an ability's methods."""
    methods = [name for name, value in vars(ability).items() if not name.startswith("_") and callable(value)]
    return all(callable(getattr(adapter, name, None)) for name in methods)
