"""The hooks a plugin may implement.

Registration hooks are asked once and return named factories; nothing computes through a hook call.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ecoflap.core.contracts.events import Event
    from ecoflap.core.contracts.protocols import (
        Adapter,
        Allocator,
        Dataset,
        Evaluator,
        Exporter,
        Metric,
        Pruner,
        Refiner,
        Scorer,
    )

hookspec = pluggy.HookspecMarker("ecoflap")
hookimpl = pluggy.HookimplMarker("ecoflap")


@hookspec
def ecoflap_register_scorers() -> "Mapping[str, Callable[..., Scorer]]":  # type: ignore[empty-body]
    """Offer scorers, which ask the whole model how much its loss cares about each layer.

    :return: Factories by name, as written after ``score:`` in a recipe. A factory is usually a frozen dataclass;
        its fields are the parameters.
    """


@hookspec
def ecoflap_register_allocators() -> "Mapping[str, Callable[..., Allocator]]":  # type: ignore[empty-body]
    """Offer allocators, which turn scores into how many weights each group keeps.

    :return: Factories by name, as written after ``allocate:``.
    """


@hookspec
def ecoflap_register_pruners() -> "Mapping[str, Callable[..., Pruner]]":  # type: ignore[empty-body]
    """Offer pruners, which decide which weights of one layer go.

    :return: Factories by name, as written after ``prune:``.
    """


@hookspec
def ecoflap_register_refiners() -> "Mapping[str, Callable[..., Refiner]]":  # type: ignore[empty-body]
    """Offer refiners, which train the kept weights of a pruned block or model.

    :return: Factories by name, as written after ``refine:``.
    """


@hookspec
def ecoflap_register_metrics() -> "Mapping[str, Callable[..., Metric]]":  # type: ignore[empty-body]
    """Offer metrics, which say how much each weight of a layer matters.

    :return: Factories by name, as written after the ``metric:`` of the pruner ``by_metric``.
    """


@hookspec
def ecoflap_register_adapters() -> "Mapping[str, Callable[..., Adapter]]":  # type: ignore[empty-body]
    """Offer adapters, each for one model family.

    :return: Factories by name, as written after ``model.adapter:``; where a recipe names none, the one that matches is
        taken.
    """


@hookspec
def ecoflap_register_exporters() -> "Mapping[str, Callable[..., Exporter]]":  # type: ignore[empty-body]
    """Offer exporters, each for one file format.

    :return: Factories by name, as written after ``export:``.
    """


@hookspec
def ecoflap_register_datasets() -> "Mapping[str, Callable[..., Dataset]]":  # type: ignore[empty-body]
    """Offer datasets to calibrate and evaluate on.

    :return: Factories by name, as written after ``calibration:`` or an evaluator's ``data:``.
    """


@hookspec
def ecoflap_register_evaluators() -> "Mapping[str, Callable[..., Evaluator]]":  # type: ignore[empty-body]
    """Offer evaluators, which measure a model before and after.

    :return: Factories by name, as written after ``evaluate:``.
    """


@hookspec
def ecoflap_on_event(event: "Event") -> None:
    """Hear the run: a progress bar, a log file, an experiment tracker.

    An observer that raises is named in a warning and switched off; the run goes on.

    :param event: One of the frozen dataclasses of ``ecoflap.core.contracts.events``.
    """
