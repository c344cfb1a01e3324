"""The scores of single weights: a number for each weight of a layer, in a file that is mapped when it is looked at."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from ecoflap.core.errors import FormatError
from ecoflap.core.sealing.sealed import open_sealed, sealed, with_way_out, write_sealed

_FORMAT = "ecoflap.weight_scores"
_ANEW = "Restore it, or delete it with the scores.jsonl that knows it, and score anew"


@dataclass(frozen=True)
class WeightScores:
    """A score that is a number for each weight of a layer, each finite and at least 0; larger is kept longer.

    It is what the engine keeps of the tensor that a scorer yields. It holds no number itself, so that those of all
    layers take no memory.

    :param file: Where the numbers are.
    :param seal: That of the file.
    :param total: The sum of the numbers.
    """

    file: Path
    seal: str
    total: float

    @classmethod
    def written(cls, file: Path, layer: str, numbers: Float32[Tensor, "out in"]) -> "WeightScores":
        """Write the numbers of a layer into a file, whole or not at all."""
        seal = write_sealed(file, _FORMAT, layer, {layer: sealed(numbers)})
        return cls(file, seal, float(numbers.sum(dtype=torch.float64)))

    def numbers(self, way_out: str = _ANEW) -> Float32[Tensor, "out in"]:
        """Map the numbers: the system reads them from the file, and takes them out of memory again where that is short.

        :param way_out: What can be done about a damaged file, where its run is not the one that is going on.
        :raises FormatError: Where the file is missing, or is not what was written.
        """
        with with_way_out(way_out), open_sealed(self.file, _FORMAT) as file:
            if file.seal != self.seal:
                raise FormatError(f"{self.file} holds other scores than were written.")
            return file.mapped(file.manifest)
