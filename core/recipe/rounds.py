"""The rounds of a recipe: how much each of them prunes, and the recipe that each of them is by itself."""

from fractions import Fraction

from ecoflap.core.recipe.schema import Recipe, TowerChoice

_DIGITS = 6
"""Decimals of a share between the first and the last, which is no fraction by itself."""


def shares_of_rounds(rounds: int | tuple[float, ...] | None, sparsity: float) -> tuple[float, ...]:
    """Give the share that has gone after each round.

    Of n rounds the i-th leaves p^(i/n) of the weights, p being the share that the last one leaves, so that each takes
    the same part of what is left; rounded to six decimals. A list says it itself.
    """
    if isinstance(rounds, tuple):
        return rounds
    count, left = rounds or 1, float(1 - Fraction(str(sparsity)))
    before = (min(round(1 - left ** (number / count), _DIGITS), sparsity) for number in range(1, count))
    return (*before, sparsity)


def recipe_of_round(recipe: Recipe, number: int) -> Recipe:
    """Give the recipe that a round is by itself: with its own sparsity, and refiners in the last alone.

    :param number: From 1; the last round is the recipe itself.
    """
    if number == recipe.round_count:
        return recipe
    assert recipe.sparsity is not None  # checked with the recipe
    share = shares_of_rounds(recipe.rounds, recipe.sparsity)[number - 1]
    towers = {
        name: own if own == "keep" else _tower_in_round(recipe, own, number) for name, own in recipe.towers.items()
    }
    return recipe.model_copy(update={"sparsity": share, "towers": towers, "refine": ()})


def _tower_in_round(recipe: Recipe, own: TowerChoice, number: int) -> TowerChoice:
    share = None if own.sparsity is None else shares_of_rounds(recipe.rounds, own.sparsity)[number - 1]
    return own.model_copy(update={"sparsity": share, "refine": None})
