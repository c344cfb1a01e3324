"""Keep what finished refiners of the whole model made of it, so that a run that is cut off in a later one begins there.

The weights are written once, when a refiner ends and another one follows: four bytes for each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import Tensor, nn

from ecoflap.core.contracts.events import Refined
from ecoflap.core.errors import FormatError
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.refining.kept_steps import WAY_OUT, Kept, put, read_kept, taken
from ecoflap.core.sealing.sealed import open_sealed, sealed, with_way_out, write_sealed

FILE = "refined.safetensors"
"""Its name, among the finished blocks, with which it is deleted."""

FORMAT = "ecoflap.refined"


@dataclass(frozen=True)
class FinishedRefiners:
    """Writes and reads the file; the first of several processes does so for all.

    :param refiners: What tells each of a run's refiners from any other, in the order they run.
    :param plan: The digest of the plan by which the model was pruned.
    :param is_mapped: Whether weights that are taken up stay in the file until they are in their place.
    """

    file: Path
    refiners: Sequence[Mapping[str, object]]
    plan: str
    ranks: Ranks
    is_mapped: bool = False

    def keep(self, done: Sequence[Refined], parameters: Sequence[nn.Parameter]) -> None:
        """Write what the first few refiners did, and the weights as they are now."""
        if self.ranks.rank == 0:
            manifest = json.dumps({**self._of(len(done)), "done": [asdict(one) for one in done]})
            tensors = {kept.written(): sealed(one) for kept, one in taken(parameters).items()}
            write_sealed(self.file, FORMAT, manifest, tensors)

    def take_up(self, parameters: Sequence[nn.Parameter]) -> list[Refined]:
        """Put the weights where the last finished one left them, and give what each did; nothing where none is kept.

        :raises FormatError: Where the file is damaged.
        """
        done, tensors = self.ranks.first(lambda: self._read(parameters))
        put(tensors, parameters)
        return done

    def _of(self, count: int) -> dict[str, object]:
        return {"refiners": list(self.refiners[:count]), "plan": self.plan}

    def _read(self, parameters: Sequence[nn.Parameter]) -> tuple[list[Refined], dict[Kept, Tensor]]:
        if not self.file.is_file():
            return [], {}
        with with_way_out(WAY_OUT), open_sealed(self.file, FORMAT) as file:
            manifest = file.mapping()
            done = manifest.pop("done", None)
            if not isinstance(done, list) or manifest != self._of(len(done)):
                return [], {}
            tensors = read_kept(file, parameters, is_mapped=self.is_mapped)
            return [_refined(one, number, self.file) for number, one in enumerate(done)], tensors


def _refined(told: object, number: int, path: Path) -> Refined:
    """Read what a refiner did.

    :param number: Which it is; files of before do not say.
    """
    wanted = {field.name for field in fields(Refined)}
    told = {"number": number, **told} if isinstance(told, dict) else told
    if not isinstance(told, dict) or told.keys() != wanted:
        raise FormatError(f"{path}: of a finished refiner its manifest has not {', '.join(sorted(wanted))}")
    return Refined(**told)
