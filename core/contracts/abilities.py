"""What a model can be asked for beside its loss. An adapter offers an ability by having its methods.

An evaluator names the ability that it needs in its class attribute ``wants``, and the plan says where an adapter does
not offer it. An adapter that offers one for some of its models only has ``refuses(model, ability)`` too, which says of
a model why it cannot (``ecoflap.core.contracts.adapter_options``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.records import Sample


@dataclass(frozen=True)
class Generation:
    """How a text is to be made, in the words that transformers has for it. Nothing is drawn at random.

    :param max_new_tokens: After how many tokens a text is broken off that does not end by itself.
    :param min_new_tokens: How many tokens a text has at least.
    :param num_beams: How many beginnings of a text are gone on with; 1 takes the likeliest token each time.
    :param length_penalty: The power of a beam's length by which its log-likelihood is divided.
    """

    max_new_tokens: int = 10
    min_new_tokens: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0


class Said(NamedTuple):
    """A text that a model made.

    :param text: The text without special tokens and without blanks around it.
    :param tokens: The tokens of the text, without those that begin and end it.
    :param ended: Whether the model ended it, rather than being broken off.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool


class Generates(Protocol):
    """The ability to say something of an image, or to go on with a text."""

    does: ClassVar[str] = "make texts"

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Make a text for each sample, in their order, from its image and its question.

        A sample's text is the same whatever else is in the batch.
        """
        ...

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens by which the model would say a text, without those that end it."""
        ...


class Compares(Protocol):
    """The ability to tell how well a text fits an image, from vectors of both."""

    does: ClassVar[str] = "compare images with texts"

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images ..."]:
        """Give one vector or several of each sample's image."""
        ...

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """Give the vector of each text."""
        ...

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images ..."], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """Compare every image with every text, by what they were embedded as; larger is more alike.

        The similarity of two depends on nothing else in the batch.
        """
        ...


class Matches(Protocol):
    """The ability to tell how well a text fits an image by looking at both; ``rerank`` of retrieval asks for it."""

    does: ClassVar[str] = "match images with texts"

    def match(self, model: nn.Module, sample: Sample, texts: Sequence[str]) -> Float[Tensor, " texts"]:
        """Say how well each text fits one image; larger is better."""
        ...


class Classifies(Protocol):
    """The ability to sort images, or pairs of them with a sentence, into a fixed list of classes."""

    does: ClassVar[str] = "classify images"

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images classes"]:
        """Give each sample's logits, in the order of the numbers that labels have."""
        ...


ABILITIES: tuple[Any, ...] = (Generates, Compares, Matches, Classifies)


def offers(adapter: Any, ability: Any) -> bool:
    """Say whether an adapter, or its factory, has an ability's methods."""
    methods = [name for name, value in vars(ability).items() if not name.startswith("_") and callable(value)]
    return all(callable(getattr(adapter, name, None)) for name in methods)
