"""A portion is the share of a data set's rows or documents that is used, so that others are left to evaluate on."""

from fractions import Fraction
from random import Random

Portion = tuple[float, float]


def portion_problem(portion: Portion) -> str | None:
    """Say what is wrong with a portion; None where it is two rising numbers from 0 to 1."""
    if 0 <= portion[0] < portion[1] <= 1:
        return None
    return f"portion is {list(portion)}; two rising numbers from 0 to 1 are needed, such as [0, 0.7]."


def portion_bounds(portion: Portion, count: int) -> tuple[int, int]:
    """Give where a portion of so many rows begins and ends.

    The numbers are read as exact decimals, so that 0.7 ends one portion where it begins the next.
    """
    start, end = (int(Fraction(str(share)) * count) for share in portion)
    return start, end


def rows_in(portion: Portion, count: int) -> list[int]:
    """Give the numbers of the rows that are in a portion, in rising order.

    Which rows these are is left to chance, because the first rows of a table may all be of one class. It is the same
    chance for every portion, so that two portions that do not overlap share no row.
    """
    start, end = portion_bounds(portion, count)
    numbers = list(range(count))
    if end - start < count:
        Random(0).shuffle(numbers)
        numbers = sorted(numbers[start:end])
    return numbers
