"""Statistics that pruners ask for, of a layer's inputs and of the loss' gradient, added up in little memory.

Sums over tokens come out the same, within float32's rounding, however the tokens are cut into calls. The engine has
one for each of four spans of the batches and merges them in order, so that their bits do not depend on which process
saw which.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int8, Shaped
from torch import Tensor

from ecoflap.core.contracts.records import IMAGE, PADDING, TEXT, TokenChoice
from ecoflap.core.errors import ModelError

_CACHED = 1 << 16  # elements: 256 kB of float32, so that a square is summed while it is still in the core's cache
_ROWS = 512  # enough for a matrix product at full speed
_STRIP = 384  # rows of a Gram matrix in a product: fewer leave out more of what is above the diagonal, but are slower


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
        return self._sum.float()

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        rows = inputs.detach().reshape(-1, self.in_features)
        self.tokens += len(rows)
        # On a GPU every piece is a kernel launch; there is no cache to stay in.
        step = max(1, len(rows) if rows.is_cuda else _CACHED // self.in_features)
        for some in rows.split(step):
            self._sum += some.to(torch.float32, copy=True).square_().sum(0)  # another tensor would be other memory

    def merge(self, other: "ColumnNorm") -> None:
        self.tokens += other.tokens
        self._sum += other._sum.to(self._sum.device)

    def to(self, device: torch.device | str) -> "ColumnNorm":
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
        """Leave the inputs alone: the gradient knows of them."""

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
        """Leave the inputs alone: the gradient knows of them."""

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


class Gram:
    """Sums x xᵀ over all tokens: the Hessian, up to a factor, of a layer's squared output error.

    Tokens are gathered until there are enough for one product. The products are then the same however the tokens came.
    The matrix is symmetric: what is above the diagonal is not summed, which saves nearly half of the time.

    :param in_features: The length of one input.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.tokens = 0
        # Behind the diagonal of each strip of rows nothing is summed.
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float32)
        self._waiting = torch.zeros(_ROWS, in_features, dtype=torch.float32)
        self._waits = 0
        self._factors: dict[Hashable, Any] = {}

    @property
    def matrix(self) -> Float32[Tensor, "in in"]:
        whole = self._sum.clone()
        self._add_products(whole, self._waiting[: self._waits])
        for start in range(_STRIP, self.in_features, _STRIP):
            strip = slice(start, start + _STRIP)
            whole[:start, strip] = whole[strip, :start].T
        return whole

    def __getstate__(self) -> dict[str, Any]:
        """Give what another process is sent: the sum, and neither rows that wait nor what was derived."""
        return {"in_features": self.in_features, "tokens": self.tokens, "sum": self.matrix}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["in_features"])  # type: ignore[misc]
        self.tokens, self._sum = state["tokens"], state["sum"]
        self._waiting = self._waiting.to(self._sum.device)

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        rows = inputs.detach().reshape(-1, self.in_features)
        self._changed(len(rows))
        while len(rows):
            some = rows[: _ROWS - self._waits]
            self._waiting[self._waits : self._waits + len(some)] = some
            self._waits += len(some)
            rows = rows[len(some) :]
            if self._waits == _ROWS:
                self._add_products(self._sum, self._waiting)
                self._waits = 0

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make()`` gives, which is kept under its key until inputs are added or the sums are moved.

        Layers with the same inputs share their statistic, and so what a pruner derives from the matrix.

        :param key: Names the pruner and whatever else the value depends on.
        """
        if key not in self._factors:
            self._factors[key] = make()
        return self._factors[key]

    def merge(self, other: "Gram") -> None:
        self._changed(other.tokens)
        other._add_waiting()  # in place, so that there is no third matrix
        self._sum += other._sum.to(self._sum.device)

    def to(self, device: torch.device | str) -> "Gram":
        if torch.device(device) != self._sum.device:
            self._sum, self._waiting = self._sum.to(device), self._waiting.to(device)
            self._factors.clear()
        return self

    def _add_waiting(self) -> None:
        """Add the rows that wait for more of them."""
        waiting, self._waits = self._waiting[: self._waits], 0
        self._add_products(self._sum, waiting)

    def _add_products(self, total: Float32[Tensor, "in in"], rows: Float32[Tensor, "tokens in"]) -> None:
        """Add rows' products to a total, in strips that end behind the diagonal."""
        for start in range(0, self.in_features, _STRIP):
            stop = min(start + _STRIP, self.in_features)
            total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])

    def _changed(self, tokens: int) -> None:
        self.tokens += tokens
        self._factors.clear()
