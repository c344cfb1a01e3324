"""Statistics that pruners ask for, of a layer's inputs and of the loss' gradient, added up in little memory.

Sums over tokens come out the same, within float32's rounding, however the tokens are cut into calls. The engine has
one for each of four spans of the batches and merges them in order, so that their bits do not depend on which process
saw which.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float, Float32, Int8, Shaped
from torch import Tensor

from ecoflap.core.contracts.records import IMAGE, PADDING, TEXT, TokenChoice
from ecoflap.core.errors import ModelError

_CACHED = 1 << 16  # elements: 256 kB of float32, so that a square is summed while it is still in the core's cache


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


class ColumnNorm:
    """Sums x² of each input over all tokens: the square of Wanda's ‖X_j‖₂.

    :param in_features: The length of one input.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.tokens = 0
        self._sum = torch.zeros(in_features, dtype=torch.float64)

    @property
    def squared(self) -> Float32[Tensor, " in"]:
        """Give Σ x² over the tokens that were added, for each input, in its unit squared; a new tensor each time."""
        return self._sum.float()

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        """Add the squares of some tokens' inputs; each counts once, whatever axes they lie along."""
        rows = inputs.detach().reshape(-1, self.in_features)
        self.tokens += len(rows)
        # On a GPU every piece is a kernel launch; there is no cache to stay in.
        step = max(1, len(rows) if rows.is_cuda else _CACHED // self.in_features)
        for some in rows.split(step):
            self._sum += some.to(torch.float32, copy=True).square_().sum(0)  # another tensor would be other memory

    def merge(self, other: "ColumnNorm") -> None:
        """Add the sum of another, taken over other tokens."""
        self.tokens += other.tokens
        self._sum += other._sum.to(self._sum.device)

    def to(self, device: torch.device | str) -> "ColumnNorm":
        """Move the sum to a device, in place, and return itself."""
        self._sum = self._sum.to(device)
        return self


class RegionalGradient:
    """Takes √(1/N Σ_n (∂‖f(x_n)‖₂/∂W)²): how far each weight moves the norm of its own block's output, over N samples.

    It is the regional gradient score of Wanda++ (Yang et al., 2025): a backward through one block, never the whole
    model. f(x_n) is the block's output at the real tokens of sample n.

    :param in_features: The length of one input; the gradient has the weight's shape.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.samples = 0
        self._sum: Tensor | None = None

    @property
    def magnitude(self) -> Float32[Tensor, "out in"]:
        """Give the root mean square of the samples' gradients."""
        if self._sum is None:
            raise ModelError("no gradient has reached this layer: its block's output does not depend on it")
        return (self._sum / self.samples).sqrt()

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        """Do nothing: this statistic is of gradients, and of no inputs."""

    def add_gradient(self, gradient: Float[Tensor, "out in"]) -> None:
        """Add one sample's gradient."""
        squared = gradient.detach().float().square()
        self._sum = squared if self._sum is None else self._sum.add_(squared)
        self.samples += 1

    def merge(self, other: "RegionalGradient") -> None:
        """Add the samples of another."""
        if other._sum is not None:
            there = other._sum.clone() if self._sum is None else self._sum
            self._sum = there if self._sum is None else there.add_(other._sum.to(there.device))
        self.samples += other.samples

    def to(self, device: torch.device | str) -> "RegionalGradient":
        """Move the sum."""
        self._sum = None if self._sum is None else self._sum.to(device)
        return self


class LossGradient:
    """Takes 1/N Σ_n |∂L_n/∂W|: how far the loss of the whole model moves with each weight, over N batches.

    The model is what it is before anything of it is pruned: in a later round, what the round before left.

    :param in_features: The length of one input; the gradient has the weight's shape.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.batches = 0
        self._sum: Tensor | None = None

    @property
    def magnitude(self) -> Float32[Tensor, "out in"]:
        """Give the mean of the batches' absolute gradients, in main memory."""
        if self._sum is None:
            raise ModelError("no gradient has reached this layer: the model's loss does not depend on it")
        return self._sum / self.batches

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        """Do nothing: this statistic is of gradients, and of no inputs."""

    def sum_into(self, total: Float32[Tensor, "out in"]) -> None:
        """Take a tensor of zeros to sum into."""
        self._sum = total

    def add_loss_gradient(self, gradient: Float[Tensor, "out in"]) -> None:
        """Add one batch's gradient."""
        size = gradient.detach().float().abs()
        self._sum = size if self._sum is None else self._sum.add_(size)
        self.batches += 1

    def merge(self, other: "LossGradient") -> None:
        """Add the batches of another."""
        if other._sum is not None:
            self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum.to(self._sum.device))
        self.batches += other.batches

    def to(self, device: torch.device | str) -> "LossGradient":
        """Move the sum."""
        self._sum = None if self._sum is None else self._sum.to(device)
        return self
