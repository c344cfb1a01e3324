"""The scorer ``stable_rank`` tells over how many directions a matrix spreads its energy, without any data.

    S_l = ‖W_l‖_F² / ‖W_l‖_2²

It is 1 for a matrix that stretches a single direction and min(out, in) for an orthogonal one. Where the energy lies in
few directions, most of the matrix is redundant and can go; where it is spread out, every weight matters about equally.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ecoflap import Layer, Replay, hookimpl


@dataclass(frozen=True)
class StableRank:
    """Score layers so that those whose weights point in more directions keep more. It needs no calibration data.

    :param relative: Whether the rank is divided by the largest that the matrix could have, so that layers of different
        shape compare.
    """

    relative: bool = True

    aggregate: ClassVar[Literal["mean"]] = "mean"
    data: ClassVar[bool] = False

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        for layer in layers:
            singular = torch.linalg.svdvals(layer.weight.detach().float())
            rank = float((singular / singular[0].clamp(min=1e-30)).square().sum())
            yield layer.name, rank / len(singular) if self.relative else rank


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[StableRank]]:
    return {"stable_rank": StableRank}
