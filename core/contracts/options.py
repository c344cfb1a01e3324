"""What a part may say about itself beside being callable: each kind's optional members, with types and defaults.

A part may inherit from its kind's class here, and need not: a member that it has is taken, for one that it lacks the
default of this page is. They are read once, when a recipe is checked. A member whose name is nearly one of these is
refused, so that a misspelt one is never passed over in silence (``ecoflap.core.contracts.conformance``). Those of
adapters are a page of their own, ``ecoflap.core.contracts.adapter_options``.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ecoflap.core.contracts import optional_methods as methods
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import (
    Aggregate,
    Meanwhile,
    Sample,
    ScoreKind,
    Target,
    TokenChoice,
    Unit,
    ViewSize,
)
from ecoflap.core.model.anatomy import Anatomy


class PartOptions:
    """What a part of any kind may have."""

    def problems(self, context: PlanContext) -> Iterable[str]:
        """Say what keeps the part from being used here, a sentence for each thing.

        It is asked before any weight is read, by ``ecoflap plan`` and by a run: whatever the part would refuse later
        for a reason that is known by then belongs here. By default there is nothing.
        """
        return ()

    def takes_over(self) -> Iterable[Path]:
        """Name what it takes over of other runs: their folders, or files in them; by default nothing.

        A run warns where they pruned another model, for what fits one model's weights need not fit another's.
        """
        return ()

    def runs_code_of(self) -> Iterable[Path]:
        """Name the files and folders among its parameters whose code it runs, or has a library run.

        A recipe with such a part is refused unless its user allows code, before the part is asked for anything else. By
        default it runs none.
        """
        return ()


class ScorerOptions(PartOptions):
    """What a scorer may have.

    :cvar unit: What the names stand for that it yields scores of.
    :cvar samples: How many calibration samples its replay holds at most; None for all.
    :cvar aggregate: How the score of a group follows from those of its layers; a recipe may say otherwise.
    :cvar data: Whether it looks at data. One that does not needs no ``calibration:``.
    :cvar gives: Whether its scores are numbers, curves (``Curve``), or with ``"weights"`` tensors of a number for each
        weight of a layer, which are put into files as they come. An allocator has to take what it gives.
    :cvar like: The name of another scorer, whose scores mean the same as its own: an allocator that takes the other's
        scores alone takes these too. Empty, the default, names none. None says that nothing is known of what its scores
        mean, and every allocator takes them.
    :cvar dtype: What its replay runs the model in: at least ``"float32"``, or for ``"model"`` what the run computes in,
        its own type as a rule, which is faster, and enough for differences of the loss that are larger than rounding.
    :cvar together: Whether a layer's score depends on which others are scored. Then all are asked for again where a run
        that was cut off has some.
    :cvar only_reads: Whether it changes no weight but by ``Replay.perturbed``, and gives the same scores of weights
        that are held in a wider type. Its replay may hold the whole model in float32 then, where memory is free.
    :cvar shares: Whether it gives the same scores when several processes share the replay's batches. It does if it uses
        nothing but ``run``, ``advance`` and ``loss(i)`` of all batches, and ``each`` or ``gathered`` for single ones.
        Otherwise one process scores while the others wait.
    """

    unit: Unit = "layer"
    samples: int | None = None
    aggregate: Aggregate = "sum"
    data: bool = True
    gives: ScoreKind = "number"
    like: str | None = ""
    dtype: Literal["float32", "model"] = "float32"
    together: bool = False
    only_reads: bool = False
    shares: bool = False

    def forwards(self, anatomy: Anatomy, batches: int) -> int | None:
        """Tell how many forwards it takes, for the plan; None, the default, where it cannot say.

        :param anatomy: The layers to be scored.
        :param batches: The calibration batches that it looks at.
        """
        return None

    def held_numbers(self, anatomy: Anatomy) -> int:
        """Tell how many numbers in float32 it holds beside the model at the most, for the plan; 0, the default.

        Such are the directions that it moves weights along. A copy of the block that it moves is counted without it.

        :param anatomy: The layers to be scored.
        """
        return 0

    def recorded_numbers(self, anatomy: Anatomy) -> int:
        """Tell how many numbers in float32 it has the replay keep, for the plan; 0, the default.

        Such are sums of the loss' gradient. They lie with the record: in memory, or with ``keep: disk`` in a file.

        :param anatomy: The layers to be scored.
        """
        return 0


class AllocatorOptions(PartOptions):
    """What an allocator may have.

    :cvar takes: ``"number"`` for one that looks at scores that are numbers, ``"curve"`` for one that looks at curves,
        ``"weights"`` for one that looks at numbers of single weights (``Group.weight_scores``); None for one that looks
        at none, so that none is computed.
    :cvar scorers: The names of the scorers whose scores it reads, where its formula is about what these measure: a
        recipe with another is refused. Without any, the default, it reads all of the kind that it takes.
    :cvar candidates: Other allocators, by whose plans the engine prunes, to take the one with the least held-out loss.
        Each is one that its own parameters were given, such as ``of: tuple[Allocator, ...]``.
    :cvar held_out: The share of the calibration batches that is held out for that.
    :cvar tokens: Which tokens count in statistics: choices that each candidate is tried by, for that of the recipe.
    :cvar refine: Whether the blocks of each candidate are refined too, as the run's are, before that loss is taken.
    :cvar keeps: A method ``keeps(layers)`` that says how many weights of the layers of these names it keeps in all,
        where that is its own to say: a recipe with such an allocator may leave ``sparsity`` out. It gives None where it
        cannot tell, for reasons that its call gives. None, the default, stands for what a sparsity leaves.
    """

    takes: ScoreKind | None = "number"
    scorers: tuple[str, ...] = ()
    candidates: tuple[Any, ...] = ()
    held_out: float = 0.25
    tokens: tuple[TokenChoice, ...] = ()
    refine: bool = False
    keeps: methods.Keeps | None = None


class PrunerOptions(PartOptions):
    """What a pruner may have.

    :cvar needs: The types of the statistics (``Statistic``) that it is given of a layer's inputs; none by default.
    :cvar dense_weights: Whether it looks at ``seen.dense_weight``, so that with ``rounds`` the matrices as they were
        before the first one are held beside the model.
    :cvar changes_weights: Whether it changes weights that it keeps, so that finished blocks hold more than masks, for
        the plan.
    :cvar allocate: The allocator, written as in a recipe, that a recipe has by default with this pruner, where it alone
        keeps what the pruner will; None, the default, for a pruner that prunes by any plan.
    """

    needs: tuple[type[Any], ...] = ()
    dense_weights: bool = False
    changes_weights: bool = True
    allocate: Mapping[str, Any] | str | None = None

    def files(self) -> Iterable[Path] | None:
        """Name every file and folder that its result depends on; None, the default, stands for its parameters'."""
        return None

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Tell how many numbers in float32 it holds while it prunes a layer, beside what it is given; 0 by default."""
        return 0


class RefinerOptions(PartOptions):
    """What a refiner may have.

    :cvar scope: ``"block"`` for one that is given each block as soon as it is pruned; ``"model"`` for one that is given
        the whole model after its last block.
    :cvar target: What a block's outputs are held against: ``"dense"``, what the dense block gives in the dense model;
        ``"own"``, what it gives on the inputs that the pruned block has.
    :cvar both_targets: Whether a refiner of blocks looks at the ``targets`` of the other kind too, which are then held
        beside its own, by which it is judged.
    :cvar each: What of a block it is given at a time: ``"block"``, all of it; ``"subblock"``, its attention, its MLP
        and whatever else it calls that holds layers, one after another in the order they run, or the whole block where
        that has no sub-blocks. Each is judged, and undone, by itself.
    :cvar inside: Whether a refiner of whole blocks looks at their ``subblocks`` and ``objectives_inside``, so that what
        sub-blocks of the dense model gave is recorded for it.
    :cvar dense_weights: Whether it looks at ``dense_weights``, so that the matrices of the block, or of the model, as
        they were before anything was pruned are held beside it.
    """

    scope: Literal["block", "model"] = "block"
    target: Target = "dense"
    both_targets: bool = False
    each: Literal["block", "subblock"] = "block"
    inside: bool = False
    dense_weights: bool = False

    def gentler(self) -> Any:
        """Give a refiner of smaller steps, tried where this one made it worse; None, the default, for none."""
        return None


class MetricOptions(PartOptions):
    """What a metric may have.

    :cvar needs: The types of the statistics (``Statistic``) that it is given of a layer's inputs; none by default.
    """

    needs: tuple[type[Any], ...] = ()

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Tell how many numbers in float32 it holds while it computes, beside what it has and gives; 0 by default."""
        return 0


class DatasetOptions(PartOptions):
    """What a dataset may have.

    :cvar samples: How many samples it yields at most; None where that shows only when it is read.
    :cvar fetches: Whether its samples may come over a network, so that nothing of them is read for a plan.
    :cvar slow_to_begin: Whether its first sample takes more than seconds, so that none is tried before a run.
    """

    samples: int | None = None
    fetches: bool = False
    slow_to_begin: bool = False

    def classes(self) -> Sequence[str] | None:
        """Read the names of the classes, by the numbers that labels are; None, the default, for data without classes.

        It may read files, and where the dataset ``fetches``, the network.
        """
        return None

    def tokens_per_sample(self, longest: int | None) -> int | None:
        """Tell how many tokens a sample has; None, the default, where that shows only when it is read.

        :param longest: The longest text that the model takes, in tokens; None where it has no limit.
        """
        return None

    def files(self) -> Iterable[Path] | None:
        """Name every file and folder that its samples depend on, by whose contents they are known to be the same.

        None, the default, stands for the files and folders among its parameters.
        """
        return None


class EvaluatorOptions(PartOptions):
    """What an evaluator may have.

    :cvar wants: The ability that it asks of a model beside the loss, of ``ecoflap.core.contracts.abilities``; the plan
        says where the adapter has none.
    :cvar loss_batch_size: How many samples it gives at a time to the adapter's loss; None where it asks for no loss. An
        adapter whose loss compares samples with each other refuses a batch of one.
    :cvar remember: A method ``remember(model, adapter, note)`` that makes it a ``ComparingEvaluator``: it gives tensors
        of the dense model, and the evaluator is called with them, as ``dense``, on the pruned one alone. None, the
        default, stands for an evaluator that is called on both models alike.
    :cvar answers: A method ``answers(model, adapter, note)`` that gives an ``Answered`` for each sample, the samples in
        one order, for the evaluator ``agreement``. None, the default, for one whose results are no single answers.
    :cvar dealt: A method ``dealt(model, adapter, note, ranks)`` that gives in every process what the call gives in
        one, each of them having looked at a share of the data: ``ranks.deal`` deals them. None, the default, for an
        evaluator that one process calls while the others wait. One with ``remember`` is given ``dense`` besides, last;
        the dense model one process looks at.
    """

    wants: type[Any] | None = None
    loss_batch_size: int | None = None
    remember: methods.Remembers | None = None
    answers: methods.GivesAnswers | None = None
    dealt: methods.Deals | methods.DealsComparing | None = None

    def lacks(self, sample: Sample) -> str | None:
        """Name what a sample of its data is without that it needs, such as ``label``; None, the default, for nothing.

        The first samples are looked at before a run, where they lie here.
        """
        return None

    def files(self) -> Iterable[Path] | None:
        """Name every file and folder that its result depends on; None, the default, stands for its parameters'."""
        return None

    def remembered_bytes(self, context: PlanContext) -> int | None:
        """Tell how much it remembers of the dense model at most, for the plan; None, the default, if it cannot say."""
        return None


class ExporterOptions(PartOptions):
    """What an exporter may have.

    :cvar densifies: Endings of the packed files that its ``densify`` reads, such as ``(".packed.safetensors",)``.
    :cvar densify: A static method ``densify(file, target) -> Path``, which writes a packed file as an ordinary one,
        whole or not at all; called where ``densifies`` has the file's ending.
    """

    densifies: tuple[str, ...] = ()
    densify: methods.Densifies | None = None

    def views_written(self, context: PlanContext) -> Sequence[str] | None:
        """Name the views that it writes a file of each, for the plan; None, the default, where it writes the model."""
        return None

    def predicted_bytes(self, view: ViewSize) -> int | None:
        """Tell how large its files will be, for the plan; None, the default, stands for the dense weights' size.

        It is asked once for each view that it writes, or for the whole model.
        """
        return None

    def meanwhile(self, view: ViewSize) -> Meanwhile | None:
        """Tell what it takes while it writes, for the plan; None, the default, where it cannot say.

        It is asked once for each view that it writes, one after the other, or for the whole model.
        """
        return None

    def notes(self, context: PlanContext) -> Iterable[str]:
        """Say what it will do otherwise than a recipe may expect, a sentence for each thing; nothing by default.

        ``ecoflap plan`` shows it, before any weight is read.
        """
        return ()
