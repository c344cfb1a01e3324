"""A statistic may come from anywhere: what it raises is its own, and what it is given it may look at and no more."""

import numpy as np
import pytest
import torch

from ecoflap import Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.errors import EcoflapError, ModelError


class Sum:
    """Sums what it is given."""

    def __init__(self, in_features):
        self.total = torch.zeros(in_features)

    def add(self, inputs):
        self.total += inputs.reshape(-1, len(self.total)).sum(0)

    def merge(self, other):
        self.total += other.total

    def to(self, device):
        self.total = self.total.to(device)
        return self


class Folded(Sum):
    def add(self, inputs):
        inputs.abs_()


class FoldedByNumpy(Sum):
    """Writes in a way that PyTorch does not count."""

    def add(self, inputs):
        array = inputs.detach().numpy()
        np.abs(array, out=array)


class Scaled(Sum):
    """Writes into a gradient."""

    def add_gradient(self, gradient):
        gradient.mul_(2)


class Failing(Sum):
    def add(self, inputs):
        raise ValueError("no good")


class Unmerged(Sum):
    def merge(self, other):
        raise ValueError("no good")


class Gone(Sum):
    def to(self, device):
        self.total = self.total.to(device)


@pytest.fixture
def replay(pico_llama):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 60, (2, 9), generator=generator) for _ in range(2)]
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    return Replay(pico_llama(), LlamaAdapter(), batches)


@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        (
            Folded,
            ModelError,
            "^the statistic Folded wrote into what add is given to look at, and the model",
        ),
        (FoldedByNumpy, ModelError, "^the statistic FoldedByNumpy wrote into what add is given"),
        (Scaled, ModelError, "^the statistic Scaled wrote into what add_gradient is given"),
        (Failing, PartError, r"^the statistic Failing raised ValueError: no good\. It happened in test_statistics_of"),
        (Unmerged, PartError, r"^the statistic Unmerged raised ValueError: no good\."),
        (Gone, ModelError, r"^the statistic Gone: its to\(\) gave None; it returns the statistic itself$"),
    ],
)
def test_a_mistake_is_told_of_the_statistic_that_made_it(replay, kind, error, told):
    with pytest.raises(EcoflapError, match=told) as caught:
        replay.run(0, (kind,))
    assert type(caught.value) is error


def test_one_that_looks_alone_is_let_be(replay):
    seen = replay.run(0, (Sum,))
    assert all(float(one[Sum].total.abs().sum()) > 0 for one in seen.values())
