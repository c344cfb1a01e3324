"""The protocols a part implements, one for each kind, with the shapes of all tensors. Nothing here computes.

A part's parameters are the typed parameters of its factory, usually the fields of a frozen dataclass. A parameter
annotated ``pathlib.Path`` is taken relative to the file that wrote it; one annotated with a protocol of this module is
itself a part. What a part may have besides, such as ``problems(context)``, is declared kind by kind in
``ecoflap.core.contracts.options``.

A part keeps nothing between two calls: what it has to tell it returns, or says through ``note``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float32, Int8
from torch import Tensor, nn

from ecoflap.core.budget.counts import Budget, Group
from ecoflap.core.contracts.records import (
    Batch,
    Exported,
    LayerPlace,
    Measure,
    Provenance,
    Pruned,
    Sample,
    Score,
    Statistics,
)
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower
from ecoflap.core.model.parameter_masks import ParameterMasks

if TYPE_CHECKING:
    from ecoflap.core.forward.replay import Replay

Note: TypeAlias = Callable[[str], None]
"""Takes a sentence for the user and the run's log, such as which samples were passed over."""


def ignore(sentence: str) -> None:
    """Be a :data:`Note` that nobody reads, for a call outside a run."""


class Statistic(Protocol):
    """Sums up over real tokens, in at least float32, what a pruner or scorer needs to know of a layer's inputs.

    One is made for each span of batches, and they are merged in the spans' order. Where several processes do a run, it
    is pickled to be sent to another; its tensors go by themselves.
    """

    def __init__(self, in_features: int) -> None: ...

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        """Add the inputs of one call, which are there to be looked at: the model goes on with them."""
        ...

    def merge(self, other: Any) -> None:
        """Add what another statistic of this type has summed."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move its tensors, and return the statistic itself."""
        ...


@runtime_checkable
class GradientStatistic(Statistic, Protocol):
    """Is a statistic that looks at gradients too; it is each layer's own, also where layers share an input."""

    def add_gradient(self, gradient: Float[Tensor, "out in"]) -> None:
        """Add, once for each sample, the gradient of the norm of the block's output with respect to the weight.

        It comes of a backward through the block alone, as the regional gradient of Wanda++ does.
        """
        ...


@runtime_checkable
class LossStatistic(Statistic, Protocol):
    """Is a statistic of the gradient of the whole model's loss, which is taken before anything is pruned.

    It is each layer's own, and sums a number a weight, in main memory wherever the model is.
    """

    def sum_into(self, total: Float32[Tensor, "out in"]) -> None:
        """Take a tensor of zeros to sum into, on the CPU, which may lie in a file. It is called before any gradient."""
        ...

    def add_loss_gradient(self, gradient: Float[Tensor, "out in"]) -> None:
        """Add, once for each batch, the gradient of the batch's loss with respect to the weight, where the total is."""
        ...


def is_of_inputs(statistic: type[Any]) -> bool:
    """Say whether a statistic is of a layer's inputs alone, in which tokens count, and which pruned layers change."""
    return not issubclass(statistic, GradientStatistic | LossStatistic)


@runtime_checkable
class Scorer(Protocol):
    """Asks the whole model how much its loss cares about each layer. Optional members: ``ScorerOptions``."""

    def __call__(self, replay: "Replay", layers: Sequence[Layer]) -> Iterator[tuple[str, Score]]:
        """Yield the score of each layer or block, by name, as soon as it is known.

        :param replay: Runs the model's forward from any block on; its docstring says what a scorer may hook.
        :param layers: The layers that have no score yet, in the order they run.
        """
        ...


@runtime_checkable
class Allocator(Protocol):
    """Turns scores into how many weights each group keeps. Optional members: ``AllocatorOptions``."""

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        """Give the number of weights that each group keeps, in the order of the groups.

        :param keep: How many weights all groups keep together; the answer sums to it exactly.
        """
        ...


@runtime_checkable
class Pruner(Protocol):
    """Decides which weights of one layer go, looking only at its inputs. Optional members: ``PrunerOptions``."""

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        """Give the layer's mask and its weight, which keep exactly what the budget says.

        :param seen: The statistics that the pruner needs, by type: ``seen[Gram]``.
        :param layer: Which layer it is. The plan has decided how many weights it keeps.
        """
        ...


@runtime_checkable
class Refiner(Protocol):
    """Trains the kept weights of a pruned block, or of the whole pruned model. Optional members: ``RefinerOptions``."""

    def __call__(self, view: Any) -> None:
        """Change the kept weights of what is opened, by its ``parameters``. Masks stay.

        The engine measures the view's objective before and after on batches that are held out, and takes back weights
        that made it worse.

        :param view: A ``BlockView``, or with ``scope = "model"`` a ``ModelView``, of ``ecoflap.refining``.
        """
        ...


@runtime_checkable
class Metric(Protocol):
    """Says how much each weight of a layer matters, not how many are kept. Optional members: ``MetricOptions``."""

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        """Give one finite number for each weight; larger is kept longer. The weight is left as it is.

        :param seen: The statistics that the metric needs, by type: ``seen[ColumnNorm]``.
        """
        ...


@runtime_checkable
class Adapter(Protocol):
    """One model family: where its blocks are, what feeds them, what its loss is, how it is saved. No mathematics.

    Optional members: ``AdapterOptions``. Beside ``processor`` an adapter remembers nothing of a model but what it would
    find again in the same one; whatever depends on a model is given it.

    :cvar processor: The processor, or tokenizer, of the model it loaded last, or the one it was given.
    """

    processor: Any

    def matches(self, source: Source) -> bool:
        """Say whether this is the adapter for a model, by its configuration, its files' names or a model in memory.

        No weight is read for it.
        """
        ...

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, and set ``processor``, which need not be where the source is without it.

        :param dtype: The type of its weights; None keeps the checkpoint's.
        :param device: Where they go; ``meta`` gives the model without weights, and no processor.
        :raises ModelError: Where it cannot be read, or lacks weights.
        """
        ...

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give the towers in the order they run, with the matrices outside the blocks at their places."""
        ...

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give every prunable matrix of a block, in the order they run."""
        ...

    def max_length(self, model: nn.Module) -> int | None:
        """Give the length in tokens of the longest text that the model takes; None where it has no limit."""
        ...

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make one batch of samples, padded on the CPU.

        :raises DataError: Where a sample lacks what the model reads.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the mean loss over the batch's real targets, with ``use_cache=False``; differentiable under grad."""
        ...

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say what each position of a tower's hidden states is: 0 padding, 1 text, 2 image or query.

        :param call: Which of the calls that the tower's blocks declare for one forward.
        """
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model in the family's own format, so that the family's own library loads it.

        What was written is found again, or the run is refused: every prunable parameter by its name in
        ``state_dict()``, in ``*.safetensors`` or in ``*.pt``, ``*.pth`` or ``*.bin`` of ``torch.save``; or by ``load``.
        """
        ...


@dataclass(frozen=True, eq=False)
class PrunedModel:
    """A pruned model and all that is known of it: what an exporter writes.

    :param model: In eval mode.
    :param adapter: The model's, with its processor.
    :param masks: By the layer's name, True for every weight that is kept; each lies as its parameter does, which is
        ``[in, out]`` where the layer is transposed.
    :param provenance: The run that made it; None for a model that was pruned by hand.
    :param calibration: Reads the batches that its pruner looked at, where the model is, for a format that looks at what
        layers are fed. None where there are none.
    :param offloaded: Whether its weights stay in files, as those of a model that is larger than memory: an exporter is
        then to hold one of them at a time, as far as it can.
    :param held_in: The type that the run held weights in while it used them; None for their own.
    :param visits: The device that blocks go to one at a time while they run; None where the model is.
    """

    model: nn.Module
    adapter: Adapter
    masks: Mapping[str, Bool[Tensor, "rows columns"]]
    provenance: Provenance | None = None
    calibration: Callable[[], Sequence[Batch]] | None = None
    offloaded: bool = False
    held_in: torch.dtype | None = None
    visits: str | None = None

    @property
    def parameter_masks(self) -> Mapping[str, Bool[Tensor, "..."]]:
        """Give the masks by parameter, as a state dict has them: those of its parts, such as experts, are one."""
        return ParameterMasks(self.model, self.masks)


@runtime_checkable
class Exporter(Protocol):
    """Writes a pruned model in one file format. Optional members: ``ExporterOptions``."""

    def __call__(self, pruned: PrunedModel, folder: Path) -> Exported:
        """Write the files into an empty folder, read them again in their stock runtime, and say what they hold."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Measures a model. Optional members: ``EvaluatorOptions``."""

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        """Give measures by the names that they have in tables and reports.

        :param note: Takes sentences for the user, such as how many answers were empty.
        """
        ...


@runtime_checkable
class ComparingEvaluator(Protocol):
    """Measures how far a pruned model is from the dense one: an evaluator with ``remember``.

    No two models are there at once. The dense one is asked first, maybe in an earlier process; a run keeps what is
    remembered of it on the disk, and checks that it is what was written. Optional members: ``EvaluatorOptions``.
    """

    def remember(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Tensor]:
        """Give what is to be known of the dense model, as tensors by any names; they may be on any device."""
        ...

    def __call__(
        self, model: nn.Module, adapter: Adapter, note: Note, dense: Mapping[str, Tensor]
    ) -> Mapping[str, Measure]:
        """Give measures of the pruned model by the names that they have in tables and reports.

        :param dense: What :meth:`remember` gave, on the CPU; a tensor is read when it is asked for.
        """
        ...


@runtime_checkable
class Dataset(Protocol):
    """Yields samples. Optional members: ``DatasetOptions``."""

    def __call__(self, adapter: Adapter, model: nn.Module, note: Note) -> Iterator[Sample]:
        """Yield the samples, the same ones each time.

        :param adapter: Its processor counts lengths in the model's own tokens.
        :param note: Takes sentences for the user, such as what was passed over.
        """
        ...
