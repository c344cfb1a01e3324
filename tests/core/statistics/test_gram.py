"""Gram matrices of a layer's inputs, as torch adds them and as the library of kernels does where it can."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.errors import KernelError, ModelError
from ecoflap.core.kernel.route import route
from ecoflap.core.statistics.gram import Gram
from kernels import library, paths

DTYPES = [torch.float32, torch.bfloat16]


def tokens(count, features, dtype=torch.float32, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fed(pieces):
    gram = Gram(pieces[0].shape[-1])
    for piece in pieces:
        gram.add(piece)
    return gram


def assert_right(found, x):
    """Hold sums in float32 to the exact ones: an addition rounds by half of a last bit, of at most the sum of sizes."""
    exact = x.double().T @ x.double()
    sizes = x.double().abs().T @ x.double().abs()
    assert bool(((found.double() - exact).abs() <= (len(x) + 2) * 2.0**-24 * sizes).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_tokens_in_one_order_give_the_same_gram_to_the_bit(dtype):
    x = tokens(1400, 24, dtype)
    assert torch.equal(fed([x]).matrix, fed(list(x.split(7))).matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [47, 48, 49, 383, 384, 385, 1000])
def test_a_gram_of_several_strips_is_whole(features, dtype):
    x = tokens(700, features, dtype)
    gram, other = Gram(features), Gram(features)
    gram.add(x[:600])
    other.add(x[600:])
    gram.merge(pickle.loads(pickle.dumps(other)))
    assert torch.equal(gram.matrix, gram.matrix.T)
    assert_right(gram.matrix, x)


def adds(name):
    (path,) = (path for path in library().paths() if path.name == name)
    return bool(library().functions.ecoflap_path_adds_grams(path.number))


class TestByTheLibrary:
    @pytest.fixture(params=paths(), autouse=True)
    def path(self, request, take_path):
        take_path(request.param)
        return request.param

    def test_only_paths_with_products_in_bfloat16_add(self, path):
        assert adds(path) == route().adds_grams
        assert not adds(path) or path in {"amx", "avx512_wide", "avx512_bf16"}

    @given(st.integers(1, 300), st.integers(0, 1100), st.integers(0, 5), st.integers(0, 2**32))
    def test_sums_are_those_of_float64(self, features, count, gap, seed):
        x = tokens(count, features + gap, torch.bfloat16, seed)[:, :features]
        found = fed([x]).matrix
        assert_right(found, x)
        assert torch.equal(found, found.T)

    def test_threads_change_no_bit(self, monkeypatch):
        x = tokens(600, 500, torch.bfloat16)
        found = []
        for threads in (1, 2, 3):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            found.append(fed([x]).matrix)
        assert all(torch.equal(one, found[0]) for one in found)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_what_is_not_finite_shows(self, value):
        x = tokens(513, 60, torch.bfloat16)
        x[511, 50] = value
        found = fed([x]).matrix
        assert not found[50].isfinite().any()
        assert found[:50, :50].isfinite().all()

    def test_tokens_of_two_types_are_all_there(self):
        x = tokens(30, 60, torch.bfloat16)
        assert_right(fed([x[:10], x[10:20].float(), x[20:]]).matrix, x)

    def test_nothing_beside_the_sums_is_written_to(self, path):
        if not adds(path):
            pytest.skip(f"{path} leaves Gram matrices to torch")
        x = tokens(33, 70, torch.bfloat16)
        memory = torch.zeros(70 * 70 + 200)
        sums = memory[100:-100].view(70, 70)
        library().call("add_gram", route().number, x.data_ptr(), 33, 70, 70, sums.data_ptr(), 1)
        assert_right(sums.tril() + sums.tril(-1).T, x)
        assert not memory[:100].any()
        assert not memory[-100:].any()

    @pytest.mark.parametrize(
        ("count", "features", "stride", "what"),
        [
            (-1, 2, 2, "so many tokens"),
            (2, -1, 2, "so many tokens"),
            (2, 3, 2, "rows of x overlap"),
            (2**62, 2**62, 2**62, "so many tokens"),
            (1, 2**63 - 1, 1, "so many tokens"),
            (1, 2**57, 2**57, "so many tokens"),
            (2, 2, 2, "nothing at the address"),
        ],
    )
    def test_what_cannot_be_is_refused(self, path, count, features, stride, what):
        if not adds(path):
            what = "leaves Gram matrices to a dense library"
        with pytest.raises(KernelError, match=what):
            library().call("add_gram", route().number, None, count, features, stride, None, 1)


def test_torch_adds_where_it_is_asked_to(take_path):
    x = tokens(700, 60, torch.bfloat16)
    take_path("torch")
    assert not route().adds_grams
    assert_right(fed([x]).matrix, x)


class TestCached:
    @pytest.fixture
    def gram(self):
        gram = fed([tokens(10, 24)])
        assert gram.cached("mine", lambda: 1) == 1
        return gram

    def test_is_kept_under_its_key_while_nothing_is_added(self, gram):
        assert gram.matrix.shape == (24, 24)
        assert gram.to("cpu").cached("mine", lambda: 2) == 1
        assert gram.cached("another's", lambda: 2) == 2

    @pytest.mark.parametrize("make", [torch.ones, lambda size: (torch.ones(size), {"other": 1})])
    def test_is_refused_where_it_was_written_into(self, gram, make):
        made = gram.cached("tensor", lambda: make(3))
        gram.cached("tensor", lambda: make(3))
        (made if isinstance(made, torch.Tensor) else made[0]).mul_(2)
        with pytest.raises(ModelError, match=r"what is kept under 'tensor' was written into after it was made"):
            gram.cached("tensor", lambda: make(3))

    def test_goes_when_inputs_are_added(self, gram):
        gram.add(tokens(1, 24))
        assert gram.cached("mine", lambda: 2) == 2

    def test_goes_when_merged(self, gram):
        gram.merge(Gram(24))
        assert gram.cached("mine", lambda: 2) == 2
