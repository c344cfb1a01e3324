"""Every product with a layer's matrix is seen, however a model writes it, and nothing else is."""

from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.capture import Picked, watching
from ecoflap.core.model.anatomy import Layer

X = torch.randn(3, 4)
INTO_FIVE = [
    lambda x, w: F.linear(x, w.T),
    lambda x, w: x @ w,
    lambda x, w: torch.matmul(x, w),
    lambda x, w: torch.mm(x, w),
    lambda x, w: x.mm(w),
    lambda x, w: torch.addmm(torch.zeros(5), x, w),
    lambda x, w: torch.zeros(5).addmm(x, w),
    lambda x, w: (w.T @ x.T).T,
    lambda x, w: torch.bmm(x[None], w[None])[0],
    lambda x, w: torch.baddbmm(torch.zeros(1, 1, 5), x[None], w[None])[0],
    lambda x, w: torch.Tensor.__rmatmul__(w, x),
    lambda x, w: torch.linalg.matmul(x, w),
    lambda x, w: torch.matmul(other=w, input=x),
    lambda x, w: torch.addmm(mat2=w, input=torch.zeros(5), mat1=x),
    lambda x, w: torch.zeros(3, 5).addmm_(x, w),
    lambda x, w: torch.addbmm(torch.zeros(3, 5), x[None], w[None]),
    lambda x, w: torch.zeros(1, 3, 5).baddbmm_(batch2=w[None], batch1=x[None])[0],
]
ONE_INTO_FIVE = [
    lambda x, w: x @ w,
    lambda x, w: w.T @ x,
    lambda x, w: w.T.mv(x),
    lambda x, w: torch.mv(vec=x, input=w.T),
    lambda x, w: torch.addmv(torch.zeros(5), w.T, x),
    lambda x, w: torch.zeros(5).addmv_(vec=x, mat=w.T),
]


class Held(nn.Module):
    """Holds one parameter."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


def seen(layers: list[Layer], run: Callable[[], object]) -> list[tuple[str, Tensor, Picked | None]]:
    found: list[tuple[str, Tensor, Picked | None]] = []
    with torch.no_grad(), watching(layers, lambda layer, x, picked: found.append((layer.name, x, picked))):
        run()
    return found


@pytest.mark.parametrize("product", INTO_FIVE, ids=count())
@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_is_seen_however_it_is_multiplied(product, transposed):
    held = Held(4, 5) if transposed else Held(5, 4)
    layer = Layer("weight", held, transposed=transposed)
    as_used = held.weight if transposed else held.weight.T
    found = seen([layer], lambda: product(X, as_used))
    assert [name for name, _, _ in found] == ["weight"]
    assert torch.equal(found[0][1].reshape(3, 4), X)
    torch.testing.assert_close(product(X, as_used.detach()), X @ layer.weight.detach().T)


@pytest.mark.parametrize("product", ONE_INTO_FIVE, ids=count())
def test_a_matrix_is_seen_where_one_vector_is_multiplied(product):
    held = Held(5, 4)
    found = seen([Layer("weight", held)], lambda: product(X[0], held.weight.T))
    assert [name for name, _, _ in found] == ["weight"]
    assert torch.equal(found[0][1], X[:1])
    torch.testing.assert_close(product(X[0], held.weight.detach().T), held.weight.detach() @ X[0])


def test_the_parts_of_a_parameter_are_told_apart():
    held = Held(3, 5, 4)
    layers = [Layer(f"weight[{e}]", held, part=e) for e in range(3)]
    found = seen(layers, lambda: [F.linear(X, held.weight[torch.tensor(2)]), X @ held.weight[0].T])
    assert [name for name, _, _ in found] == ["weight[2]", "weight[0]"]


def test_all_parts_are_seen_in_one_product_of_many():
    held, x = Held(3, 4, 5), torch.randn(3, 2, 4)
    layers = [Layer(f"weight[{e}]", held, part=e, transposed=True) for e in range(3)]
    found = seen(layers, lambda: torch.bmm(x, held.weight))
    assert [name for name, _, _ in found] == ["weight[0]", "weight[1]", "weight[2]"]
    assert torch.equal(torch.stack([inputs for _, inputs, _ in found]), x)


def test_rows_of_a_packed_matrix_are_layers():
    held = Held(6, 4)
    layers = [Layer(f"weight[{a}:{a + 3}]", held, part=(a, a + 3)) for a in (0, 3)]
    found = seen(layers, lambda: [F.linear(X, piece) for piece in held.weight.chunk(2)])
    assert [name for name, _, _ in found] == ["weight[0:3]", "weight[3:6]"]


def test_a_slice_that_is_no_layer_is_an_error():
    held = Held(6, 4)
    with pytest.raises(ModelError, match="weight is applied in slices to different inputs"):
        seen([Layer("weight", held)], lambda: F.linear(X, held.weight[:3]))
    with pytest.raises(ModelError, match="weight is applied in slices to different inputs"):
        seen([Layer("weight", held)], lambda: X @ held.weight[:3].T)
    with pytest.raises(ModelError, match="weight is applied in slices to different inputs"):
        seen([Layer("weight", held)], lambda: X @ held.weight[0])


def test_others_matrices_are_not_seen():
    held, other = Held(5, 4), Held(5, 4)
    assert seen([Layer("weight", held)], lambda: [F.linear(X, other.weight), X @ other.weight.T, X @ X.T]) == []


def test_what_an_expert_picked_is_known_of_all_it_multiplies():
    up, down, rows = Held(2, 6, 4), Held(2, 4, 6), torch.tensor([2, 0])
    layers = [Layer(f"{n}[{e}]", h, part=e, layout="routed") for n, h in [("up", up), ("down", down)] for e in (0, 1)]

    def run() -> None:
        F.linear(X, torch.zeros(1, 4))
        for index in (rows, (None, rows)):
            picked = X[index].reshape(-1, 4)
            F.linear(F.relu(F.linear(picked, up.weight[1])), down.weight[1])
        X[torch.tensor([True, False, True])]  # no row numbers
        F.linear(X, up.weight[0])  # not as many rows as were picked

    found = seen(layers, run)
    assert [name for name, _, _ in found] == ["up[1]", "down[1]", "up[1]", "down[1]", "up[0]"]
    assert all(picked is not None and picked.rows is rows and picked.of == 3 for _, _, picked in found[:4])
    assert found[4][2] is None


def test_everything_is_as_before_afterwards():
    linear = F.linear
    held = Held(5, 4)
    with pytest.raises(ZeroDivisionError), watching([Layer("weight", held)], lambda *_: 1 / 0):
        F.linear(X, held.weight)
    assert F.linear is linear
    assert seen([], lambda: F.linear(X, held.weight)) == []
