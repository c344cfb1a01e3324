import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ecoflap.core.budget.counts import Group
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import AllocatorOptions
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.allocators.from_masks import FromMasks, ecoflap_register_allocators

WAY_OUT = "Name masks of this model, or add a mask of ones for each layer that is to stay whole"
GROUPS = [Group("0", 15, 0.0, ("0.q.weight", "0.k.weight")), Group("1.q.weight", 4, 0.0)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.q.weight": (3, 4), "0.k.weight": (1, 3), "1.q.weight": (2, 2)}
    masks = {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}
    file = tmp_path_factory.mktemp("masks") / "masks-of-others.safetensors"
    save_file(masks, file)
    (file.parent / "counts").write_text(" ".join(str(int(mask.sum())) for mask in masks.values()))
    return file


@pytest.fixture(scope="module")
def counts(path):
    return list(map(int, (path.parent / "counts").read_text().split()))


def test_is_offered():
    assert ecoflap_register_allocators() == {"from_masks": FromMasks}
    assert FromMasks.takes is None


def test_a_group_keeps_what_its_masks_keep(path, counts):
    q, k, other = counts
    assert FromMasks(path)(GROUPS, q + k + other) == [q + k, other]
    keeps = options_of(AllocatorOptions, FromMasks(path)).keeps
    assert keeps(["0.q.weight", "1.q.weight"]) == q + other
    assert keeps(["0.q.weight", "9.q.weight"]) is None
    assert FromMasks(path.parent / "nowhere").keeps(["0.q.weight"]) is None


@given(keep=st.integers(0, 19))
def test_another_total_says_both_numbers(path, counts, keep):
    if keep == sum(counts):
        assert sum(FromMasks(path)(GROUPS, keep)) == keep
    else:
        with pytest.raises(EcoflapError, match=rf"keep {sum(counts)} of 19 weights .* this recipe {keep}\. Leave"):
            FromMasks(path)(GROUPS, keep)


def test_every_missing_layer_and_every_other_size_is_told(path):
    groups = [Group("0", 15, 0.0, ("0.q.weights", "0.k.weight")), Group("1.q.weight", 5, 0.0), Group("9", 5, 0.0)]
    with pytest.raises(EcoflapError) as caught:
        FromMasks(path)(groups, 9)
    missing, other, size = caught.value.problems
    assert missing == f"{path}: it has no mask of 0.q.weights. Did you mean '0.q.weight'? {WAY_OUT}"
    assert size == f"{path}: its masks of 1.q.weight are of 4 weights, and this model has 5"
    assert "no mask of 9" in other


def test_masks_of_another_model_are_told_in_one_sentence(path):
    with pytest.raises(EcoflapError) as caught:
        FromMasks(path)([Group(f"layer.{number}", 5, 0.0) for number in range(50)], 9)
    (told,) = caught.value.problems
    assert told.startswith(
        f"{path}: it has no mask of 50 layers (layer.0, layer.1, layer.2 and 47 more), but masks of others (0."
    )
    assert told.endswith(WAY_OUT)
