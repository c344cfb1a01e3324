"""Evaluators refuse settings out of range, models that lack an ability, and data with other classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ecoflap.core.contracts.abilities import Generation, offers
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import DatasetOptions
from ecoflap.core.contracts.protocols import Dataset
from ecoflap.core.errors import DataError, EcoflapError, ModelError, first_of, refuse_below_one

MOST_BEAMS = 1_000
"""The most beams: each is a row of every batch, and so takes the memory of one."""

MOST_TOKENS = 100_000
"""The most tokens of an answer or a caption; more would keep a run busy for days before anybody notices the slip."""


def check_generation(generation: Generation) -> None:
    """Refuse numbers of beams and tokens by which no text can be made.

    :raises EcoflapError: A recipe's error then names the place where the value is written.
    """
    for name, value, most in (
        ("num_beams", generation.num_beams, MOST_BEAMS),
        ("max_new_tokens", generation.max_new_tokens, MOST_TOKENS),
    ):
        refuse_below_one(name, value)
        if value > most:
            raise EcoflapError(f"{name} is {value}; at most {most:,} is possible")
    if not 0 <= generation.min_new_tokens <= generation.max_new_tokens:
        raise EcoflapError(
            f"min_new_tokens is {generation.min_new_tokens}; from 0 to max_new_tokens, {generation.max_new_tokens}, is "
            "possible"
        )


def check_ability(name: str, ability: Any, adapter: Any, model: nn.Module) -> None:
    """Refuse a model that cannot be asked for an ability, as a plan does, for an evaluator that is called by itself.

    :param name: The evaluator's name, for messages.
    :param ability: One of ``ecoflap.core.contracts.abilities``.
    :raises ModelError: With the reason.
    """
    why = why_unable(ability, adapter, model)
    if why:
        raise ModelError(f"{name} needs a model that can {ability.does}: {why}")


def why_unable(ability: Any, adapter: Any, model: nn.Module) -> str | None:
    """Say why a model cannot be asked for an ability, in a sentence; None where it can.

    :param ability: One of ``ecoflap.core.contracts.abilities``.
    """
    if not offers(adapter, ability):
        return f"{type(adapter).__name__} has none."
    return options_of(AdapterOptions, adapter).refuses(model, ability)


def classes_of(data: Dataset) -> Sequence[str] | None:
    """Read the names of a dataset's classes; None where it does not know any."""
    return options_of(DatasetOptions, data).classes()


def check_same_classes(name: str, own: Sequence[str] | None, count: int, whose: str) -> None:
    """Refuse data whose classes are not as many as those that its labels are to be the numbers of.

    :param name: The evaluator's name, for messages.
    :param own: The names of the data's classes; None where these are not known.
    :param whose: Says whose classes the others are, such as ``the model's head has``.
    :raises DataError: With both numbers.
    """
    if own is not None and len(own) != count:
        raise DataError(
            f"{name}: the data has {len(own)} classes ({first_of(own)}), and {whose} {count}: their numbers "
            "mean something else. Give the data the names of all of them."
        )


def check_same_order(name: str, own: Sequence[str] | None, model: nn.Module) -> None:
    """Refuse data whose classes are those that a model's configuration names, in another order.

    A model that names none, or has other words for them, tells nothing.

    :raises DataError: With the first class that has another number.
    """
    named: Mapping[int, str] = getattr(getattr(model, "config", None), "id2label", None) or {}
    if own is None or {*own} != {*named.values()}:
        return
    for number, one in enumerate(own):
        if named.get(number) != one:
            raise DataError(
                f"{name}: the data's classes are the model's in another order: {number} is {one!r}, and the model's "
                f"{named.get(number)!r}. Give the data names: a file with the model's classes in their order."
            )
