"""The protocols a plugin implements, with their shapes. Nothing here computes.

A part's parameters are the typed parameters of its factory, usually the fields of a frozen dataclass. A parameter
annotated ``pathlib.Path`` is taken relative to the file that wrote it; one annotated with a protocol of this module is
itself a part. Any part may have ``problems(anatomy, recipe) -> Iterable[str]``, asked on the model without weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ecoflap.core.budget.counts import Budget, Group
from ecoflap.core.contracts.records import Batch, Exported, Measure, Pruned, Sample, Score
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower

if TYPE_CHECKING:
    from ecoflap.core.forward.replay import Replay


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
