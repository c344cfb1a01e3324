"""Write the README.md of an exported folder, so that it can be pushed to a hub as it is."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ecoflap.core.contracts.blame import sentence_of
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Provenance
from ecoflap.core.model.hub import parts_of_hub_id
from ecoflap.core.pruning.masks import bits_in, popcount, shape_in
from ecoflap.core.text.numbers import NO_VALUE, with_error
from ecoflap.core.text.strict_yaml import write_yaml
from ecoflap.core.text.templates import render
from ecoflap.exporters.shared.loading_code import dense_code, library_of, packed_code
from ecoflap.exporters.shared.paths_left_out import without_places
from ecoflap.exporters.shared.pruned_weights import names_once

CARD = "README.md"
MEMORY = "memory"
"""What a recipe calls the source of a model that it was given."""
Form = Literal["packed", "dense"]

_NAMED_BY_HUBS = ("transformers", "open_clip", "timm")

TEMPLATE = Path(__file__).with_name("templates") / "model_card.md.j2"


class MeasureRow(NamedTuple):
    """Shows a measure of the pruned model beside the dense one's.

    :param over: What it is a mean of, such as ``8,191 tokens``.
    :param better: Which way it is better: ``more`` or ``less``.
    """

    name: str
    dense: str
    pruned: str
    over: str
    better: str


def write_card(pruned: PrunedModel, folder: Path, form: Form, *, is_smaller: bool = False) -> Path:
    """Write ``README.md``, which describes what else lies in a folder.

    It says what is known of the run that pruned the model, and without a run what the masks tell.

    :param is_smaller: Whether the model takes fewer bytes there than the dense one.
    :return: The file.
    """
    known, base = pruned.provenance, _base(pruned)
    towers, sparsity = _sparsities(pruned)
    values = {
        "front_matter": write_yaml(_front_matter(pruned.model, base)),
        "title": base.rpartition("/")[2] if _on_hub(base) else base,
        "base": base,
        "of_a_run": known is not None,
        "parts": list(_parts(known)),
        "form": form,
        "is_smaller": is_smaller,
        "towers": towers,
        "sparsity": sparsity,
        "measures": list(_measures(known)),
        "loading_code": (packed_code if form == "packed" else dense_code)(pruned, folder),
        "recipe": write_yaml(without_places(known.recipe)) if known is not None else "",
    }
    (folder / CARD).write_text(render(TEMPLATE, values), encoding="utf-8")
    return folder / CARD


def add_card(pruned: PrunedModel, folder: Path, form: Form, *, is_smaller: bool = False) -> tuple[str, ...]:
    """Write ``README.md`` as :func:`write_card` does, and lose nothing else where that fails.

    :return: A note where there is no card, with the reason; nothing where it was written.
    """
    try:
        write_card(pruned, folder, form, is_smaller=is_smaller)
    except Exception as error:  # a template can raise anything, and hours of pruning may lie behind this
        (folder / CARD).unlink(missing_ok=True)
        return (f"its {CARD} could not be written: {sentence_of(error)}",)
    return ()


def _base(pruned: PrunedModel) -> str:
    """Give the dense model, as its users know it."""
    source = without_places(pruned.provenance.source) if pruned.provenance is not None else MEMORY
    return type(pruned.model).__name__ if source in ("", MEMORY) else str(source)


def _on_hub(base: str) -> str | None:
    """Give the repository of a hub id, which may name a revision; None of anything else."""
    parts = parts_of_hub_id(base)
    return parts[0] if parts else None


def _front_matter(model: nn.Module, base: str) -> dict[str, Any]:
    library = library_of(model)
    front: dict[str, Any] = {"tags": ["ecoflap", "pruning", "sparsity"]}
    if (repository := _on_hub(base)) is not None:
        front = {"base_model": repository, **front}
    return {"library_name": library, **front} if library in _NAMED_BY_HUBS else front


def _parts(known: Provenance | None) -> Iterator[tuple[str, str]]:
    """Yield what the run's parts were for, each with the part's name."""
    for job, key in (("budgets", "allocate"), ("weights chosen", "prune")):
        part = known.recipe.get(key) if known is not None else None
        if isinstance(part, Mapping) and "use" in part:
            yield job, str(part["use"])


def _sparsities(pruned: PrunedModel) -> tuple[Mapping[str, float], float | None]:
    """Return the sparsity of each tower, and of all together; None where neither a run nor masks tell it."""
    if pruned.provenance is not None:
        return pruned.provenance.towers, pruned.provenance.sparsity
    return _counted(pruned) if pruned.masks else ({}, None)


def _counted(pruned: PrunedModel) -> tuple[dict[str, float], float]:
    """Give the sparsity of each tower, and of all masks together."""
    adapter, masks = pruned.adapter, pruned.masks
    towers: dict[str, float] = {}
    for tower in adapter.towers(pruned.model):
        names = [layer.name for block in tower.blocks for layer in adapter.layers(block) if layer.name in masks]
        if names:
            towers[tower.name] = _sparsity_of(masks, names)
    return towers, _sparsity_of(pruned.parameter_masks, names_once(pruned))


def _sparsity_of(masks: Mapping[str, Tensor], names: Iterable[str]) -> float:
    counts = [(prod(shape_in(masks, name)), popcount(bits_in(masks, name))) for name in names]
    size, kept = sum(size for size, _ in counts), sum(kept for _, kept in counts)
    return 1 - kept / size if size else 0.0


def _measures(known: Provenance | None) -> Iterator[MeasureRow]:
    measures = known.measures if known is not None else {}
    dense = measures.get("dense", {})
    for name, found in measures.get("pruned", {}).items():
        over = f"{found['n']:,} {found['unit']}".strip()
        better = "more" if found["larger_is_better"] else "less"
        yield MeasureRow(name, _measure_text(dense.get(name)), _measure_text(found), over, better)


def _measure_text(measure: Mapping[str, Any] | None) -> str:
    return NO_VALUE if measure is None else with_error(measure["value"], measure["standard_error"])
