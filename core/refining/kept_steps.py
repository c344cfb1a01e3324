"""Keep how far a refiner of the whole model is, so that a run that was cut off goes on from there to the same bits.

The weights in training and what the optimiser knows of them, three numbers a weight by Adam, are written every two
minutes. That takes seconds; the last two minutes are done again, from the numbers that they were done from before.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ecoflap.core.disk.on_disk import matrix_on_disk
from ecoflap.core.errors import FormatError
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.sealing.sealed import Sealed, open_sealed, sealed, with_way_out, write_sealed

FILE = "refining.safetensors"
"""Its name, among the finished blocks, with which it is deleted."""

FORMAT = "ecoflap.refining"
_WEIGHT = "weight"
WAY_OUT = "Delete it, and the refiner begins anew; or start anew with --fresh"


class Kept(NamedTuple):
    """Names a tensor in a file: by the number of its weight, and ``weight`` or what an optimiser calls it."""

    number: int
    key: str

    def written(self) -> str:
        """Give its name in the file."""
        return f"{self.number} {self.key}"

    @classmethod
    def read(cls, name: str) -> "Kept | None":
        """Take such a name apart; None of any other."""
        number, _, key = name.partition(" ")
        try:
            kept = cls(int(number), key)
        except ValueError:
            return None
        return kept if kept.written() == name else None


@dataclass(frozen=True)
class KeptSteps:
    """Writes and reads the file of one refiner; the first of several processes does so for all.

    :param refiner: What tells it from any other, of which nothing is taken up.
    :param tell: Is called with how many steps are done, of how many.
    :param failed: How many tries, each of larger steps, came before this one.
    :param keep_in: On whose disk weights and what the optimiser has of them lie; None for memory.
    """

    file: Path
    refiner: Mapping[str, object]
    ranks: Ranks
    tell: Callable[[int, int], None]
    failed: int = 0
    keep_in: Path | None = None

    EVERY: ClassVar[float] = 120.0
    """Seconds between two writes."""

    def steps(self, count: int, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer) -> Iterator[int]:
        """Yield the numbers of the steps that are still to be done, once weights and optimiser are as at the first.

        :raises FormatError: Where the file is damaged.
        """
        first, tensors = self.ranks.first(lambda: self._read(count, parameters))
        put(tensors, parameters, optimiser, self.keep_in)
        del tensors  # a copy of all weights, which would be held to the end
        self.tell(first, count)
        written, settings = monotonic(), settings_of(optimiser)
        for step in range(first, count):
            yield step
            self.tell(step + 1, count)
            is_time = self.ranks.rank == 0 and monotonic() - written >= self.EVERY
            if step + 1 < count and is_time and settings == settings_of(optimiser) and is_taken(parameters, optimiser):
                self._write(step + 1, count, taken(parameters, optimiser))
                written = monotonic()

    def failed_before(self) -> int:
        """Tell how many tries had failed before the one whose steps are kept; 0 where none are of this refiner.

        :raises FormatError: Where the file is damaged.
        """
        return self.ranks.first(self._read_failed)

    def _read_failed(self) -> int:
        if not self.file.is_file():
            return 0
        with with_way_out(WAY_OUT), open_sealed(self.file, FORMAT) as file:
            manifest = file.mapping()
        failed, count = manifest.pop("failed", None), manifest.pop("of", None)
        manifest.pop("done", None)
        is_ours = manifest == self.refiner and isinstance(count, int)
        return failed if is_ours and isinstance(failed, int) and failed >= 0 else 0

    def _of(self, count: int) -> dict[str, object]:
        return {**self.refiner, "failed": self.failed, "of": count}

    def _write(self, done: int, count: int, tensors: Mapping[Kept, Tensor]) -> None:
        manifest = json.dumps({**self._of(count), "done": done})
        write_sealed(self.file, FORMAT, manifest, {kept.written(): sealed(one) for kept, one in tensors.items()})

    def _read(self, count: int, parameters: Sequence[nn.Parameter]) -> tuple[int, dict[Kept, Tensor]]:
        """Give how many steps are done, with what was kept of them: none where there is no file of this refiner."""
        if not self.file.is_file():
            return 0, {}
        with with_way_out(WAY_OUT), open_sealed(self.file, FORMAT) as file:
            manifest = file.mapping()
            done = manifest.pop("done", None)
            if manifest != self._of(count) or not isinstance(done, int) or not 0 < done < count:
                return 0, {}
            return done, read_kept(file, parameters, is_mapped=self.keep_in is not None)


def read_kept(file: Sealed, parameters: Sequence[nn.Parameter], *, is_mapped: bool) -> dict[Kept, Tensor]:
    """Read a file's tensors.

    :param is_mapped: Whether they stay in the file, and no more than a page of them is in memory.
    :raises FormatError: Where one is of no weight here, or a weight is not of its shape.
    """
    found: dict[Kept, Tensor] = {}
    shapes = {number: tuple(parameter.shape) for number, parameter in enumerate(parameters)}
    for name, (_, shape, _, _) in file.places.items():
        kept = Kept.read(name)
        wanted = None if kept is None else shapes.get(kept.number)
        is_weight = kept is not None and kept.key == _WEIGHT  # an optimiser keeps what it likes, as Adafactor rows
        if kept is None or wanted is None or (is_weight and shape != wanted):
            raise FormatError(f"{file.path}: the tensor {name!r} is {shape}, and of the weight there is {wanted}")
        found[kept] = file.mapped(name) if is_mapped else file.read(name)
    return found


def settings_of(optimiser: torch.optim.Optimizer) -> list[dict[str, str]]:
    """Write out what an optimiser's groups say but rates, which change by the step's number; some count in others."""
    beside = {"params", "lr", "initial_lr"}
    return [{key: repr(value) for key, value in group.items() if key not in beside} for group in optimiser.param_groups]


def is_taken(parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer) -> bool:
    """Say whether an optimiser knows no more of weights than :func:`taken` gives; some count steps in numbers."""
    states = [optimiser.state.get(parameter, {}) for parameter in parameters]
    return all(isinstance(value, Tensor | None) for state in states for value in state.values())


def taken(parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer | None = None) -> dict[Kept, Tensor]:
    """Give the weights, and every tensor that an optimiser has of one."""
    found = {Kept(number, _WEIGHT): parameter.data for number, parameter in enumerate(parameters)}
    for number, parameter in enumerate(parameters):
        state = {} if optimiser is None else optimiser.state.get(parameter, {})
        found |= {Kept(number, key): value for key, value in state.items() if isinstance(value, Tensor)}
    return found


def put(
    tensors: Mapping[Kept, Tensor],
    parameters: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer | None = None,
    keep_in: Path | None = None,
) -> None:
    """Put what :func:`taken` gave where it was taken from.

    :param keep_in: On whose disk that is, of what an optimiser has; None for memory.
    """
    for (number, key), tensor in tensors.items():
        parameter = parameters[number]
        if key == _WEIGHT:
            parameter.data.copy_(tensor)
        elif optimiser is not None:
            there = tensor.to(_home(tensor, parameter, optimiser))
            # A number that stays mapped would keep the whole file on the disk when it is written anew.
            optimiser.state[parameter][key] = matrix_on_disk(there, keep_in) if there.dim() > 1 else there.clone()


def _home(tensor: Tensor, parameter: nn.Parameter, optimiser: torch.optim.Optimizer) -> torch.device:
    """Say where an optimiser has a tensor: beside the weight, but for the steps that Adam counts unless it is fused."""
    (group,) = (group for group in optimiser.param_groups if any(one is parameter for one in group["params"]))
    return parameter.device if tensor.dim() or group.get("fused") else tensor.device
