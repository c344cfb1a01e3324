"""The weights of tokens in statistics: which of them count in a block, and how much."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float32, Int8, Shaped
from torch import Tensor

from ecoflap.core.contracts.records import IMAGE, PADDING, TEXT, TokenChoice


class TokenWeights:
    """Says how much each token counts in the statistics of a block's layers.

        text       1 for text, 0 for images
        balanced   N/2N_t for text, N/2N_v for images; N = N_t + N_v are the tokens of all batches
        all        1 for every position, padding too
        drifting   1 for text, and for the k tokens of a sample's images with the largest drift 1 − cos(x, f(x)), f
                   being the block:  k = min(n_v, round(min(1, mean drift)·n_t)), of n_t and n_v tokens in the sample

    ``drifting`` is Li, Qian & Han, Mostly Text, Smart Visuals: Asymmetric Text-Visual Pruning for Large Vision-Language
    Models, CVPR 2026, with α = 1, as in its script. A tower in which one of the kinds never occurs has all its real
    tokens count alike, and so has one whose drift is not known.

    :param choice: Which of them count.
    :param kinds: What each position of a batch is, by the batch's number, the tower and the call.
    :param batches: How many batches there are.
    :param drifts: By tower, how far the block turned each position, batch by batch and call by call.
    """

    def __init__(
        self,
        choice: TokenChoice,
        kinds: Callable[[int, str, int], Int8[Tensor, "batch tokens"]],
        batches: int,
        drifts: Mapping[str, Sequence[Sequence[Float32[Tensor, "batch tokens"]]]],
    ) -> None:
        self._choice, self._kinds, self._batches, self._drifts = choice, kinds, batches, drifts
        self._counts, self._mean_drift = cache(self._counted), cache(self._averaged)

    def of(self, number: int, tower: str, call: int) -> Shaped[Tensor, "batch tokens"]:
        """Give the weight of each position of a batch; 0 for one that does not count."""
        kinds = self._kinds(number, tower, call)
        if self._choice == "all":
            return torch.ones_like(kinds, dtype=torch.bool)
        text, images = (0, 0) if self._choice == "real" else self._counts(tower, call)
        if not text or not images:
            return kinds != PADDING
        if self._choice == "balanced":
            half = (text + images) / 2
            return (kinds == TEXT) * (half / text) + (kinds == IMAGE) * (half / images)
        if self._choice == "text":
            return kinds == TEXT
        if tower not in self._drifts:
            return kinds != PADDING
        drift, mean = self._drifts[tower][number][call], self._mean_drift(tower, call)
        return (kinds == TEXT) | _drifting_most(kinds, drift, mean)

    def _counted(self, tower: str, call: int) -> tuple[int, int]:
        """Count the tokens of text and of images in all batches."""
        kinds = [self._kinds(number, tower, call) for number in range(self._batches)]
        text, images = (sum(int((one == kind).sum()) for one in kinds) for kind in (TEXT, IMAGE))
        return text, images

    def _averaged(self, tower: str, call: int) -> float:
        """Give the mean drift of all images' tokens."""
        found = [
            drifts[call][self._kinds(number, tower, call).to(drifts[call].device) == IMAGE]
            for number, drifts in enumerate(self._drifts[tower])
        ]
        return float(torch.cat(found).mean())


def _drifting_most(
    kinds: Int8[Tensor, "batch tokens"], drift: Float32[Tensor, "batch tokens"], mean: float
) -> Bool[Tensor, "batch tokens"]:
    """Choose the images' tokens of each sample that drift most."""
    chosen = torch.zeros_like(kinds, dtype=torch.bool)
    for sample, kind, own in zip(chosen, kinds, drift.to(kinds.device), strict=True):
        text, images = (int((kind == one).sum()) for one in (TEXT, IMAGE))
        most = min(images, round(min(1.0, mean) * text))
        sample[own.masked_fill(kind != IMAGE, -torch.inf).topk(most).indices] = True
    return chosen
