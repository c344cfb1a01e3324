"""What parts give and take: samples, scores, measures, pruned weights, and what an export is made of."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ecoflap.core.budget.curves import Curve
from ecoflap.core.budget.weight_scores import WeightScores
from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Layer

StatisticType = TypeVar("StatisticType")

Batch: TypeAlias = Mapping[str, Any]
"""Tensors by the name of the argument they are in the model's forward."""


Score: TypeAlias = float | Curve | Float[Tensor, "out in"]
"""How much the loss cares about a layer or block, as a scorer yields it.

It is a number, larger being kept longer; or how the loss rises; or, of a layer, a number for each of its weights.
"""
KeptScore: TypeAlias = float | Curve | WeightScores
"""A score as the engine keeps it: numbers of single weights lie in a file."""
ScoreKind = Literal["number", "curve", "weights"]
"""What a scorer's scores are, and an allocator takes: a number, a curve, or a number for each weight."""
SCORES_CALLED: Mapping[ScoreKind, str] = {"number": "numbers", "curve": "curves", "weights": "numbers a weight"}
"""What scores are called that a scorer gives, or an allocator takes."""

Aggregate = Literal["sum", "mean", "per_parameter"]
"""How the score of a group follows from those of its members."""
Target = Literal["dense", "own"]
"""What a refined block is held against: what the dense block gave in the dense model, or gives on its own inputs."""
Granularity = Literal["layer", "block", "tower", "model"]
"""What shares one sparsity."""
PADDING, TEXT, IMAGE = 0, 1, 2
"""What an adapter's ``tokens`` says of a position: padding, text, or a patch of an image or a query."""
TokenChoice = Literal["real", "text", "balanced", "drifting", "all"]
"""Which tokens count in statistics of layers' inputs.

They are those that are no padding; in a tower that has text and images text alone, both kinds with half of the weight
each, or text and of each sample those of its images that the block turns most; or every position, padding too.
"""
Unit = Literal["layer", "block"]
"""What a scorer's scores are of."""


@dataclass(frozen=True)
class Sample:
    """One thing a dataset yields; what it holds depends on the dataset.

    :param image: A PIL image in RGB.
    :param images: Several of them in their order, where what is said is about all of them; ``image`` is then None.
    :param question: What is asked about the image or of the text, or the beginning of a text to be gone on with.
    :param label: The number of the image's class; of a sentence on images, 1 where it is true and 0 where it is not.
    :param texts: All captions of the image, ``text`` among them.
    :param id: The data set's own name of it: of a question, or of the image where nothing is asked.
    :param image_id: The data set's own name of the image, or its file's: samples of one image have the same.
    :param kind: What the data set sorts it under, such as ``yes/no``, by which results are told apart.
    """

    text: str | None = None
    tokens: Int64[Tensor, "tokens"] | None = None
    image: Any = None
    question: str | None = None
    answers: tuple[str, ...] = ()
    label: int | None = None
    texts: tuple[str, ...] = ()
    id: str | int | None = None
    image_id: str | int | None = None
    kind: str | None = None
    images: tuple[Any, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """Give all that people said of the image; the one text where there are no others."""
        return self.texts or (() if self.text is None else (self.text,))


class Estimate(float):
    """A score that is a mean over random draws or batches, with the terms it is a mean of.

    Its standard error, and that of a group it is summed into, come from the terms: the terms of two layers scored on
    the same batches are added batch by batch before their spread is taken.
    """

    terms: tuple[float, ...]

    def __new__(cls, terms: Iterable[float]) -> "Estimate":
        values = tuple(terms)
        self = super().__new__(cls, sum(values) / len(values))
        self.terms = values
        return self

    def __getnewargs__(self) -> Any:
        return (self.terms,)

    @property
    def standard_error(self) -> float:
        """Compute the sample standard deviation over √n; infinite from a single term."""
        n = len(self.terms)
        if n < 2:
            return float("inf")
        variance = sum((term - float(self)) ** 2 for term in self.terms) / (n - 1)
        return float((variance / n) ** 0.5)


@dataclass(frozen=True)
class Measure:
    """What an evaluator found.

    :param n: How many things (tokens, questions) the value is over.
    :param unit: What those things are.
    :param larger_is_better: Which way to read it.
    """

    value: float
    n: int
    standard_error: float
    unit: str = ""
    larger_is_better: bool = True


class Answered(NamedTuple):
    """What a model answered to one sample.

    :param answer: Its answer, such that the same answer is the same text or number.
    :param image: What samples of one image have in common; their answers may depend on each other.
    """

    answer: str | int
    image: Hashable


class Mended(NamedTuple):
    """Says how far a pruner that mends another one's choice of a layer's weights came, on the calibration data.

    :param by: What mends: ``refit``, ``swap``, ``dsnot``.
    :param before: The error of the inner pruner's weights, a share of what the layer puts out.
    :param after: The same of the weights that it found.
    :param is_kept: False where these were worse, so that the inner pruner's weights stay.
    """

    by: str
    before: float
    after: float
    is_kept: bool


class Pruned(NamedTuple):
    """What a pruner makes of one layer.

    :param mask: True for every weight that is kept. The mask is the truth: a kept weight may happen to be zero.
    :param weight: The weight in its own dtype, zero wherever the mask is False.
    :param notes: Sentences for the run's log, such as a damping that had to be raised; each is told once a block,
        of the first layer that has it.
    :param mended: What pruners that mend another one's choice came to, the innermost first.
    """

    mask: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"]
    notes: tuple[str, ...] = ()
    mended: tuple[Mended, ...] = ()


class Statistics(dict[type[Any], Any]):
    """The statistics of one layer's inputs by their types: ``seen[Gram]`` is a ``Gram``.

    :param is_fed: False for an expert that saw no token: its statistics are as though each of its inputs had come once
        and alone, so that a method goes by its weights.
    :param dense_weight: What the layer's weight was before the first round, in the first the weight itself, to be
        looked at; None for a pruner without ``dense_weights``, and where a scorer prunes.
    """

    def __init__(
        self,
        found: Mapping[type[Any], Any] = {},
        *,
        is_fed: bool = True,
        dense_weight: Float[Tensor, "out in"] | None = None,
    ) -> None:
        super().__init__(found)
        self.is_fed = is_fed
        self.dense_weight = dense_weight

    def beside(self, dense_weight: Float[Tensor, "out in"]) -> "Statistics":
        """Give the same statistics with what the layer's weight was before the first round."""
        return Statistics(self, is_fed=self.is_fed, dense_weight=dense_weight)

    def __getitem__(self, kind: type[StatisticType]) -> StatisticType:
        """Give the statistic of a type.

        :raises ModelError: Where no pruner, metric or scorer named this type among those it needs.
        """
        try:
            found: StatisticType = super().__getitem__(kind)
        except KeyError:
            there = ", ".join(one.__name__ for one in self) or "none"
            if not isinstance(kind, type):
                raise ModelError(
                    f"a statistic is asked for by its type, seen[ColumnNorm], and not by {kind!r:.100}; taken: {there}"
                ) from None
            raise ModelError(
                f"the statistic {kind.__name__} was not taken of this layer's inputs; taken: {there}. Name it in the "
                f"`needs` of the pruner or metric that asks for it, or in the call of replay.run"
            ) from None
        return found


@dataclass(frozen=True)
class LayerPlace:
    """Which layer a pruner is given.

    :param name: The parameter's name in ``model.state_dict()``.
    :param tower: The tower's name: ``vision``, ``language``…
    :param block: The block's name: ``model.layers.3``.
    :param block_index: The block's number among the blocks of its tower, from 0.
    :param index: The layer's number among the layers of its block, from 0.
    :param transposed: Whether the model holds it as ``[in, out]``, as a mask by its name then does too.
    """

    name: str
    tower: str
    block: str
    block_index: int
    index: int
    transposed: bool = False


@dataclass(frozen=True)
class Provenance:
    """What a run knows of the model that it made, for what is written about it.

    :param source: The dense model's, as the recipe names it: a hub id, a path, ``timm:NAME``.
    :param recipe: The whole recipe as plain values, as :meth:`Recipe.plain` writes it.
    :param towers: By tower, the share of its prunable weights that went.
    :param sparsity: The same of all towers together.
    :param measures: By stage (``dense``, ``pruned``) and name; empty where nothing was evaluated.
    :param fingerprint: What tells the dense model apart from others: the SHA-256 of each of its files, or its commit.
    """

    source: str
    recipe: Mapping[str, Any]
    towers: Mapping[str, float]
    sparsity: float
    measures: Mapping[str, Mapping[str, Mapping[str, Any]]]
    fingerprint: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """A part of a model that can be exported by itself: tensors in, tensors out.

    :param name: ``vision``, ``text``, ``encoder``, ``decoder``, ``decoder_with_past``…
    :param module: Takes ``inputs`` in their order and returns a tuple of tensors in that of ``outputs``; in eval mode.
        It holds the model's own modules, so that its weights are the model's.
    :param inputs: An example, each by the name that transformers and Optimum give it.
    :param other: Another, of another batch size and other lengths: what is exported is compared with the model on both.
    :param outputs: Names of what it returns.
    :param dynamic: By input, which of its axes vary and by what name: ``{"input_ids": {0: "batch", 1: "sequence"}}``.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    other: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Is a matrix of a view that an embedding, a head or both have.

    :param is_looked_up: Whether an embedding takes rows of it.
    :param is_multiplied: Whether a head multiplies with it.
    """

    parameter: nn.Parameter
    is_looked_up: bool
    is_multiplied: bool


@dataclass(frozen=True)
class ViewSize:
    """What a plan knows of a view, or of the whole model, that is to be exported.

    :param parameters: All of its weights.
    :param prunable: Those of the layers that are pruned.
    :param kept: How many of these stay.
    :param largest: The weights of its largest parameter.
    :param width: Bytes of a weight.
    :param offloaded: Whether weights stay in files, as those of a model that is larger than memory.
    :param layers: Those that are pruned.
    :param put_together: Bytes of weights of the whole model that its library makes of several in its files, as all
        experts of a layer: of one that stays in these files they lie beside them. None are counted of one in memory.
    :param vocabulary: Its embeddings and heads, pruned or not.
    :param unpruned: Matrices of linear layers besides those, which are not pruned, such as those of a tower that is
        kept: in memory packed int8 rounds them too.
    """

    parameters: int
    prunable: int
    kept: int
    largest: int
    width: int
    offloaded: bool
    layers: tuple[Layer, ...] = ()
    put_together: int = 0
    vocabulary: tuple[Vocabulary, ...] = ()
    unpruned: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Meanwhile:
    """What an exporter takes while it writes and checks a view, in bytes, beside the model and the files.

    :param disk: In the folder that it is given, and gone from there afterwards.
    """

    memory: int
    disk: int = 0

    def __post_init__(self) -> None:
        wrong = [number for number in (self.memory, self.disk) if not isinstance(number, int) or number < 0]
        if wrong:
            raise ValueError(f"bytes are whole numbers of at least 0, not {' and '.join(map(repr, wrong))}")


@dataclass(frozen=True)
class StoredTensor:
    """How an exporter stored one pruned weight, or one that it rounded to int8.

    :param name: The layer's, or that of the tensor in the file where it is stored several times.
    :param form: ``dense``, ``bitmask``, ``2:4``, ``packed_op``, ``packed_op int8``, ``coo``, ``int8``, ``low rank``.
    :param dense_bytes: What it takes with every weight written out, in the type it is stored in; of ``int8`` in
        the type that it has in the model.
    :param stored_bytes: What it takes in the file.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    nonzeros: int
    dense_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Check:
    """One comparison of an exported file, read in its stock runtime, with the model in torch.

    :param difference: The largest absolute difference, on two batch sizes and lengths, of the output that is off most
        for its size.
    :param tolerance: How much of a difference was allowed in that output.
    :param is_rounded: Whether torch computed with the weights as they are rounded in the file, so that the difference
        does not tell what rounding costs.
    """

    file: str
    view: str
    runtime: str
    difference: float
    tolerance: float
    is_rounded: bool = False


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote.

    :param dense_bytes: Size of the same files without the encoding of pruned weights.
    :param notes: Sentences for the user, such as what a runtime needs to load it.
    """

    files: tuple[Path, ...]
    tensors: tuple[StoredTensor, ...] = ()
    checks: tuple[Check, ...] = ()
    dense_bytes: int | None = None
    notes: tuple[str, ...] = ()
