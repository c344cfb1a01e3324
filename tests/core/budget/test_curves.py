"""Curves: what is none, how they add up, and how they read."""

import numpy as np
import pytest
import torch

from ecoflap import Curve, EcoflapError

NAN = float("nan")


def test_curves_add_level_by_level():
    sum_ = Curve.sum([Curve((0.4, 0.8), (1.0, 4.0)), Curve((0.4, 0.8), (-0.5, 2.0))], 0.5)
    assert sum_ == Curve((0.4, 0.8), (0.25, 3.0))


@pytest.mark.parametrize("curves", [[], [Curve((0.4, 0.8), (1.0, 2.0)), Curve((0.4, 0.7), (1.0, 2.0))]])
def test_curves_of_other_levels_do_not_add(curves):
    with pytest.raises(EcoflapError, match="different ladders"):
        Curve.sum(curves)


@pytest.mark.parametrize("levels", [(), (0.5,), (0.5, 0.4), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (NAN, 0.5)])
def test_a_ladder_rises_between_none_and_all(levels):
    with pytest.raises(EcoflapError, match="a ladder is two sparsities or more"):
        Curve(levels, tuple(1.0 for _ in levels))


@pytest.mark.parametrize(
    ("rises", "told"), [((1.0,), "2 levels and 1 rises"), ((1.0, NAN), r"the rise at 0\.8 is nan")]
)
def test_each_level_has_a_finite_rise(rises, told):
    with pytest.raises(EcoflapError, match=told):
        Curve((0.4, 0.8), rises)


@pytest.mark.parametrize(("sparsity", "rise"), [(0.0, 1.0), (0.45, 1.0), (0.5, 1.0), (0.55, 2.0), (0.9, 3.0)])
def test_the_nearest_level(sparsity, rise):
    assert Curve((0.375, 0.625, 0.75), (1.0, 2.0, 3.0)).nearest(sparsity) == rise


def test_how_a_curve_reads():
    assert str(Curve((0.4, 0.65), (0.0123456, 2.0))) == "0.01235 at 40 %, 2 at 65 %"


def of_any_types(**keys):
    """A curve of what an author may give it, which the types that tests check would refuse before it does."""
    curve = object.__new__(Curve)
    for name, value in {"levels": (0.25, 0.5), "rises": (1.0, 2.0), "notes": (), **keys}.items():
        object.__setattr__(curve, name, value)
    curve.__post_init__()
    return curve


@pytest.mark.parametrize("made", [list, np.array, tuple, torch.tensor])
def test_numbers_come_in_whatever_holds_them(made):
    curve = of_any_types(levels=made([0.25, 0.5]), rises=made([1.0, 2.0]))
    assert curve == Curve((0.25, 0.5), (1.0, 2.0))
    assert hash(curve) == hash(Curve((0.25, 0.5), (1.0, 2.0)))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"levels": 0.5}, r"levels are 0\.5; they are numbers"),
        ({"rises": (1.0, "much")}, r"rises are \(1\.0, 'much'\); they are numbers"),
        ({"notes": "a note"}, r"notes are 'a note'; they are a tuple of sentences"),
        ({"notes": (1,)}, r"notes are \(1,\); they are a tuple of sentences"),
    ],
)
def test_what_is_no_curve_is_told(keys, told):
    with pytest.raises(EcoflapError, match=told):
        of_any_types(**keys)
