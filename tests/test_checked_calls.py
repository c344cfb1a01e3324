"""What tests call is held to its annotations, functions within functions too, each time that they are defined anew."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from checked_calls import KNOWN, checked
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.select import best_of_columns
from ecoflap.core.kernel.matrix import kept_in_int8

beartype = pytest.importorskip("beartype").beartype


def check(given: Any) -> Any:
    return checked(given, typechecker=beartype)


def adding(number: int) -> Callable[..., int]:
    def add(other: int, /, *more: int, **named: int) -> int:
        return number + other + sum(more) + sum(named.values())

    return check(add)


def test_a_function_within_a_function_is_held_to_its_types_each_time():
    adders = [adding(number) for number in range(3)]
    assert [add(1, 10, more=100) for add in adders] == [111, 112, 113]
    assert adders[0].__wrapped__.__code__ in KNOWN
    for add in adders:
        assert add.__name__ == "add"
        for wrong in ((("1",), {}), ((1, "1"), {}), ((1,), {"more": "1"})):
            with pytest.raises(Exception, match="violates type hint"):
                add(*wrong[0], **wrong[1])


def test_so_is_what_it_gives():
    def giving(given: object) -> Callable[[], int]:
        def give() -> int:
            return given  # type: ignore[return-value]

        return check(give)

    assert giving(1)() == 1
    with pytest.raises(Exception, match="violates type hint"):
        giving("1")()
    assert giving(2)() == 2


def test_one_with_other_annotations_is_held_to_those():
    def taking(kind: type) -> Callable[..., None]:
        def take(given: kind) -> None:  # type: ignore[valid-type]
            pass

        return check(take)

    taking(int)(1), taking(str)("1")
    for kind, wrong in ((int, "1"), (str, 1)):
        with pytest.raises(Exception, match="violates type hint"):
            taking(kind)(wrong)


def test_one_that_takes_anything_is_what_it_was():
    def counting(names: list[str]) -> Callable[..., Any]:
        def count(*given: Any, **named: Any) -> Any:
            return len(names) + len(given) + len(named)

        return check(count)

    assert [counting(["a"] * number)(1, two=2) for number in range(3)] == [2, 3, 4]


@pytest.mark.parametrize("nested", [False, True])
def test_axes_of_one_name_have_one_size(nested: bool):
    def multiplying(scale: float) -> Callable[..., Tensor]:
        def multiply(x: Float[Tensor, "rows inner"], y: Float[Tensor, "inner columns"] | None = None) -> Tensor:
            return x if y is None else x @ y * scale

        if not nested:
            multiply.__qualname__ = "multiply"
        return check(multiply)

    for scale in (1.0, 2.0):
        multiply = multiplying(scale)
        assert multiply(torch.ones(2, 3)).shape == (2, 3)
        assert multiply(torch.ones(2, 3), torch.ones(3, 4))[0, 0] == 3 * scale
        assert multiply(torch.ones(4, 5), torch.ones(5, 6)).shape == (4, 6)
        for shapes in (((2, 3), (4, 5)), ((2, 3), (3,))):
            with pytest.raises(Exception, match="violates type hint"):
                multiply(*map(torch.ones, shapes))


def test_what_it_gives_has_the_sizes_of_what_it_takes():
    @check
    def turn(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
        return x

    assert turn(torch.ones(2, 2)).shape == (2, 2)
    with pytest.raises(Exception, match="violates type hint"):
        turn(torch.ones(2, 3))


def test_what_yields_has_axes_of_its_own():
    @check
    def yielding(x: Float[Tensor, "rows columns"]) -> Iterator[int]:
        yield len(x)

    @check
    def both(x: Float[Tensor, "rows columns"], other: Tensor) -> list[int]:
        return [*yielding(x), *yielding(other)]

    assert both(torch.ones(2, 3), torch.ones(4, 5)) == [2, 4]
    with pytest.raises(Exception, match="Type-check error"):
        yielding(torch.ones(2))


def test_a_dataclass_is_held_to_its_fields():
    @check
    @dataclass
    class Pair:
        rows: int
        columns: int = 1

    assert Pair(2) == Pair(2, 1)
    with pytest.raises(Exception, match="violates type hint"):
        Pair("2")  # type: ignore[arg-type]


def test_what_ships_is_checked():
    with pytest.raises(Exception, match="violates type hint"):
        kept_in_int8("1", 2)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="violates type hint"):
        best_of_columns(torch.ones(3), 1)


def test_nothing_that_it_has_seen_is_held():
    class Seen:
        pass

    def seeing(seen: Seen) -> Callable[[], str]:
        def see() -> str:
            return str(seen)

        return check(see)

    seen = Seen()
    assert seeing(seen)()
    gone = weakref.ref(seen)
    del seen
    gc.collect()
    assert gone() is None


def test_a_type_that_only_type_checkers_know_is_passed_over():
    def naming(given: "OnlyTypeCheckersKnow", number: int) -> int:  # type: ignore[name-defined] # noqa: F821
        return number

    naming = check(naming)
    assert naming(object(), 1) == 1
    with pytest.raises(Exception, match="Type-check error"):
        naming(object(), "1")
