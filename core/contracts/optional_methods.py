"""How the methods are called, and what they answer, that a part may have and for which there is no default.

What a part without one does is said where it is an option (``ecoflap.core.contracts.options`` and ``adapter_options``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ecoflap.core.contracts.records import Answered, Measure
from ecoflap.core.model.anatomy import Source

Note = Callable[[str], None]


class Keeps(Protocol):
    """Says how many weights an allocator keeps of these layers together; None where it cannot tell."""

    def __call__(self, layers: Sequence[str], /) -> int | None: ...


class Remembers(Protocol):
    """Gives what an evaluator has to know of the dense model."""

    def __call__(self, model: nn.Module, adapter: Any, note: Note, /) -> Mapping[str, Tensor]: ...


class GivesAnswers(Protocol):
    """Gives what a model answered to each sample."""

    def __call__(self, model: nn.Module, adapter: Any, note: Note, /) -> Iterable[Answered]: ...


class Deals(Protocol):
    """Gives in every process what an evaluator's call gives in one."""

    def __call__(self, model: nn.Module, adapter: Any, note: Note, ranks: Any, /) -> Mapping[str, Measure]: ...


class DealsComparing(Protocol):
    """Gives in every process what the call of an evaluator gives in one that remembers the dense model."""

    def __call__(
        self, model: nn.Module, adapter: Any, note: Note, ranks: Any, dense: Mapping[str, Tensor], /
    ) -> Mapping[str, Measure]: ...


class Densifies(Protocol):
    """Writes a packed file as an ordinary one, whole or not at all, and gives where that is."""

    def __call__(self, file: Path, target: Path, /) -> Path: ...


class SavesSurroundings(Protocol):
    """Writes what lies beside a model's weights."""

    def __call__(self, model: nn.Module, folder: Path, /) -> None: ...


class SavesWeights(Protocol):
    """Writes some of a model's weights, given by their names in it."""

    def __call__(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path, /) -> None: ...


class ReadsProcessor(Protocol):
    """Gives the processor that lies beside a model."""

    def __call__(self, source: Source, model: nn.Module, /) -> Any: ...
