from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.counts import Group
from ecoflap.core.budget.water_fill import split
from ecoflap.plugins.allocators.uniform import Uniform, ecoflap_register_allocators


def test_is_offered():
    assert ecoflap_register_allocators() == {"uniform": Uniform}
    assert Uniform.takes is None


@settings(max_examples=40)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=8), st.data())
def test_every_group_keeps_the_same_share(sizes, data):
    keep = data.draw(st.integers(0, sum(sizes)))
    names = [f"b{i}" for i in range(len(sizes))]
    groups = [Group(name, size, float("nan")) for name, size in zip(names, sizes, strict=True)]
    assert Uniform()(groups, keep) == split(keep, sizes, names)


def test_what_a_cap_takes_goes_to_the_others_alike():
    groups = [Group("a", 100, 1.0, cap=20), Group("b", 100, 1.0), Group("c", 100, 1.0, floor=90)]
    assert Uniform()(groups, 170) == [20, 60, 90]
