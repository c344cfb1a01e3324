import pytest
import torch

from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.core.statistics.gram import Gram


def inputs(tokens=1400, features=24, dtype=torch.float32):
    """With a column that is always large and one that is tiny, as language models have them."""
    x = torch.randn(tokens, features, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 300
    x[:, 1] *= 1e-4
    return x.to(dtype)


def fed(kind, pieces):
    statistic = kind(24)
    for piece in pieces:
        statistic.add(piece)
    return statistic


def merged(kind, pieces):
    half = len(pieces) // 2
    statistic = fed(kind, pieces[:half])
    statistic.merge(fed(kind, pieces[half:]))
    return statistic


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def x(request):
    return inputs(dtype=request.param)


SPLITS = {
    "one": lambda x: [x],
    "token by token": lambda x: list(x.split(1)),
    "uneven": lambda x: list(x.split([700, 3, 1, 513, 183])),
    "batches": lambda x: [x[:1000].reshape(2, 5, 100, -1), x[1000:].reshape(4, 100, -1)],
    "with nothing between": lambda x: [x[:900], x[:0], x[900:]],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("join", [fed, merged])
class TestSplits:
    def test_column_norm(self, x, split, join):
        norm = join(ColumnNorm, split(x))
        truth = x.double().square().sum(0)
        assert norm.tokens == len(x)
        assert norm.squared.dtype == torch.float32
        assert ((norm.squared - truth) / truth).abs().max() < 5e-7

    def test_gram(self, x, split, join):
        pieces = split(x)
        gram = join(Gram, pieces)
        truth = x.double().T @ x.double()
        scale = truth.diagonal().sqrt()
        assert gram.tokens == len(x)
        assert gram.matrix.dtype == torch.float32
        assert ((gram.matrix - truth) / (scale[:, None] * scale)).abs().max() < 2e-6
        whole = fed(Gram, [x]).matrix
        assert ((gram.matrix - whole) / (scale[:, None] * scale)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", [ColumnNorm, Gram])
def test_nothing_seen(kind):
    statistic = kind(3)
    statistic.add(torch.empty(0, 3))
    assert statistic.tokens == 0
    assert not (statistic.squared if kind is ColumnNorm else statistic.matrix).any()


@pytest.mark.parametrize("kind", [ColumnNorm, Gram])
def test_a_later_change_of_the_inputs_is_not_seen(kind):
    x = inputs(10)
    statistic = fed(kind, [x])
    expected = fed(kind, [x.clone()])
    x.zero_()
    read = "squared" if kind is ColumnNorm else "matrix"
    assert torch.equal(getattr(statistic, read), getattr(expected, read))


@pytest.mark.parametrize("kind", [ColumnNorm, Gram])
def test_keeps_no_graph(kind):
    x = inputs(10).requires_grad_()
    statistic = fed(kind, [x])
    assert not (statistic.squared if kind is ColumnNorm else statistic.matrix).requires_grad


def test_moving_gives_itself():
    norm, gram = ColumnNorm(3), Gram(3)
    assert norm.to("cpu") is norm
    assert gram.to(torch.device("cpu")) is gram
