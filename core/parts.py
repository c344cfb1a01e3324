"""The protocols a plugin implements, with their shapes. Nothing here computes.

A part's parameters are the typed parameters of its factory, usually the fields of a frozen dataclass. A parameter
annotated ``pathlib.Path`` is taken relative to the file that wrote it; one annotated with a protocol of this module is
itself a part. Any part may have ``problems(anatomy, recipe) -> Iterable[str]``, asked on the model without weights.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.core.anatomy import Block, Layer, Source, Tower
from ecoflap.core.budget import Budget, Group

if TYPE_CHECKING:
    from ecoflap.core.replay import Replay

Batch: TypeAlias = Mapping[str, Any]
"""Tensors by the name of the argument they are in the model's forward."""

Score: TypeAlias = float
"""How much the loss cares about a layer or block: larger is kept longer."""

Aggregate = Literal["sum", "mean", "per_parameter"]


@dataclass(frozen=True)
class Sample:
    """One thing a dataset yields; what it holds depends on the dataset.

    :param image: A PIL image in RGB.
    :param question: What is asked about the image or of the text, or the beginning of a text to be gone on with.
    :param label: The number of the image's class.
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

    @property
    def captions(self) -> tuple[str, ...]:
        """All that people said of the image; the one text where there are no others."""
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

    @property
    def standard_error(self) -> float:
        """Sample standard deviation over √n; infinite from a single term."""
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


class Pruned(NamedTuple):
    """Which weights stay, which is the truth, and the weight in its own dtype with zeros elsewhere."""

    mask: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"]


class Statistic(Protocol):
    """What a pruner needs to know of a layer's inputs, summed over real tokens in float32.

    May have ``add_gradient(gradient: Float[Tensor, "out in"]) -> None``; then a block-local backward feeds it.
    """

    def __init__(self, in_features: int) -> None: ...
    def add(self, inputs: Float[Tensor, "... in"]) -> None: ...
    def merge(self, other: Any) -> None: ...
    def to(self, device: torch.device | str) -> Any: ...


@runtime_checkable
class Scorer(Protocol):
    """Asks the model how much its loss cares about each layer; yields each score as it is known.

    Optional attributes: ``unit`` is what the names it yields stand for (``"layer"``, the default, or ``"block"``);
    ``samples`` limits how many calibration samples its :class:`Replay` holds; ``aggregate`` says how a group's score
    comes from its layers': ``"sum"`` (the default), ``"mean"`` or ``"per_parameter"``.

    :param layers: The layers still without a score, in the order they run.
    """

    def __call__(self, replay: "Replay", layers: Sequence[Layer]) -> Iterator[tuple[str, Score]]: ...


@runtime_checkable
class Allocator(Protocol):
    """Turns scores into how many weights each group keeps.

    Optional attribute: ``takes`` is ``"score"`` (the default), or None for one that looks at no score, so that none is
    computed.

    :param keep: How many weights all groups keep together; the answer sums to it exactly.
    """

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]: ...


@runtime_checkable
class Pruner(Protocol):
    """Decides which weights of one layer go, looking only at that layer's inputs.

    :param needs: The statistics it wants. ``statistic`` is None for none, the statistic for one, a tuple in this order
        for more.
    """

    needs: ClassVar[tuple[type[Any], ...]] = ()

    def __call__(self, weight: Float[Tensor, "out in"], statistic: Any, budget: Budget) -> Pruned: ...


@runtime_checkable
class Adapter(Protocol):
    """One model family: where its blocks are, what feeds them, what its loss is, how it is saved. No mathematics.

    Like any part it may have ``problems(anatomy, recipe)``, such as a batch size of one for a contrastive loss. To be
    exported to ONNX or TorchScript it has ``export_views(model) -> Sequence[View]``; to be packed with all that loading
    takes, ``save_surroundings(model, folder)``, which writes what ``save`` does without the weights.

    :param processor: The family's own tokenizer or processor, set by ``load`` or given to :func:`ecoflap.run`.
    """

    processor: Any

    def matches(self, source: Source) -> bool:
        """Whether this is the adapter for it, by a configuration, file names or a model in memory; never by weights."""
        ...

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode.

        :param dtype: None keeps the checkpoint's.
        :param device: ``meta`` gives the anatomy without weights.
        """
        ...

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """In the order they run, with the matrices outside the blocks that a recipe may include at their places."""
        ...

    def layers(self, block: Block) -> Sequence[Layer]:
        """Every prunable matrix of a block."""
        ...

    def max_length(self, model: nn.Module) -> int | None:
        """The longest text the model takes, in tokens; None where it reads no text or has no limit."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Batch: ...

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch's real targets, with ``use_cache=False``; differentiable when grad is on."""
        ...

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """What each position of a tower's hidden states is: 0 padding, 1 text, 2 image or query.

        :param call: Which of the calls that the tower's blocks declare for one forward.
        """
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """In the family's own format, so that the family's own library loads it."""
        ...


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


@dataclass(frozen=True)
class StoredTensor:
    """How an exporter stored one pruned weight.

    :param name: The layer's, or that of the tensor in the file where it is stored several times.
    :param form: ``dense``, ``bitmask``, ``2:4``, ``coo``.
    :param dense_bytes: What it takes with every weight written out, in the type it is stored in.
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
    """

    file: str
    view: str
    runtime: str
    difference: float
    tolerance: float


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


@runtime_checkable
class Exporter(Protocol):
    """Writes a model into an empty folder; what it returns is the files, or more about them.

    Optional method: ``predicted_bytes(parameters, prunable, kept, width)`` says before a run how large they will be;
    without it the dense model's size is taken. An exporter of packed files may have ``densifies``, the endings of their
    names, and a static ``densify(file, target) -> Path``, which ``ecoflap densify`` calls.
    """

    def __call__(self, model: nn.Module, adapter: Adapter, folder: Path) -> "list[Path] | Exported": ...


@runtime_checkable
class Evaluator(Protocol):
    """Measures a model. The names of its measures are those in tables and reports."""

    def __call__(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Measure]: ...


@runtime_checkable
class Dataset(Protocol):
    """Yields samples. It is given the adapter because lengths are counted with the model's own tokenizer.

    Optional attribute and method, for the plan: ``samples``, how many there are, and ``tokens_per_sample(longest)``,
    how long each is in a model that reads ``longest`` tokens at most. Optional attribute ``notes``: after it was read,
    sentences for the run's log, such as what was passed over.
    Optional method ``files() -> Iterable[Path]``: every file that what it yields depends on, by whose contents an
    evaluation is known to be the same. Optional attribute ``classes``: their names, by the numbers that labels are.
    """

    def __call__(self, adapter: Adapter, model: nn.Module) -> Iterator[Sample]: ...
