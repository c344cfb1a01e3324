"""The README.md of an exported folder, so that it can be pushed to a hub as it is."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from torch import Tensor, nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.core.export.provenance import Provenance, provenance_of
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.source import hub_id
from ecoflap.core.pruning.masks import masks_of
from ecoflap.core.text.numbers import measure_text
from ecoflap.core.text.strict_yaml import write_yaml

CARD = "README.md"
LIBRARIES = ("transformers", "open_clip", "timm", "lavis")
MEMORY = "memory"
"""What a recipe calls the source of a model that it was given."""
Form = Literal["packed", "dense"]

_SIZE: Mapping[Form, str] = {
    "packed": "**It is smaller, and not faster.** A pruned weight takes one bit on disk and in a download. Once loaded "
    "the weights are dense again, so that speed and memory are those of the dense model.",
    "dense": "**It is neither smaller nor faster than the dense model.** Pruned weights are stored as zeros, so that "
    "the model's own library loads them, and zeros are multiplied like other numbers. A zipped file is smaller.",
}


def write_card(model: nn.Module, adapter: Adapter, folder: Path, form: Form) -> Path:
    """Write ``README.md`` of what else lies in a folder.

    What the run knew is told where it is attached to the model, and otherwise what the masks tell.
    """
    known = provenance_of(model)
    base = _base(known, model)
    name = base.rpartition("/")[2] if _on_hub(base) else base
    parts = [
        f"---\n{write_yaml(_front(model, base))}---\n",
        f"# {name}, pruned\n",
        f"{_opening(known, base)} {_SIZE[form]}\n",
        "## Sparsity\n",
        *_sparsity(known, model, adapter),
        *(_measured(known.measures) if known is not None else ()),
        "## Loading\n",
        _loading(model, adapter, folder, form),
        *(_recipe(known) if known is not None else ()),
    ]
    (folder / CARD).write_text("\n".join(parts), encoding="utf-8")
    return folder / CARD


def library_of(model: nn.Module) -> str:
    """Whose class the model is of, or is made from; ``torch`` where that is none of the known ones'."""
    homes = (kind.__module__.partition(".")[0] for kind in type(model).__mro__)
    return next((home for home in homes if home in LIBRARIES), "torch")


def without_places(value: Any) -> Any:
    """A recipe with every path of the machine reduced to its last name."""
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    if isinstance(value, PurePath):
        return value.name
    return _reduced(value) if isinstance(value, str) else value


def _reduced(text: str) -> str:
    plain = text.removeprefix("file://")
    if PurePosixPath(plain).is_absolute() or plain.startswith("~"):
        return PurePosixPath(plain).name
    return PureWindowsPath(plain).name if PureWindowsPath(plain).is_absolute() else text


def _base(known: Provenance | None, model: nn.Module) -> str:
    """The dense model, as its users know it."""
    told = without_places(known.source) if known is not None else MEMORY
    return type(model).__name__ if told in ("", MEMORY) else str(told)


def _on_hub(base: str) -> str | None:
    """The repository, of a hub id with or without its revision."""
    try:
        return hub_id(Source(base))[0]
    except ModelError:
        return None


def _front(model: nn.Module, base: str) -> dict[str, Any]:
    library = library_of(model)
    front: dict[str, Any] = {"tags": ["ecoflap", "pruning", "sparsity"]}
    if (repository := _on_hub(base)) is not None:
        front = {"base_model": repository, **front}
    return {"library_name": library, **front} if library in LIBRARIES[:3] else front


def _opening(known: Provenance | None, base: str) -> str:
    told = f"`{base}`" if known is not None else f"A `{base}`"
    if known is None:
        return f"{told}, pruned without retraining with ecoflap."
    allocate, prune = (known.recipe.get(key, {}) for key in ("allocate", "prune"))
    used = [
        f"{what} by `{part['use']}`"
        for what, part in (("budgets", allocate), ("weights chosen", prune))
        if isinstance(part, Mapping) and "use" in part
    ]
    return f"{told}, pruned without retraining with ecoflap{': ' if used else ''}{', '.join(used)}."


def _sparsity(known: Provenance | None, model: nn.Module, adapter: Adapter) -> Iterator[str]:
    towers, whole = (known.towers, known.sparsity) if known is not None else _counted(model, adapter)
    if whole is None:
        yield "How much of it was pruned was not noted.\n"
        return
    yield "The share of prunable weights that went, by tower:\n"
    yield _table(("tower", "sparsity"), [*towers.items(), ("**all of these**", whole)], lambda s: f"{100 * s:.2f} %")


def _counted(model: nn.Module, adapter: Adapter) -> tuple[dict[str, float], float | None]:
    """From the masks alone; nothing of a model without."""
    try:
        masks = masks_of(model)
    except EcoflapError:
        return {}, None
    counts: dict[str, tuple[int, int]] = {}
    for tower in adapter.towers(model):
        kept = [masks[layer.name] for block in tower.blocks for layer in adapter.layers(block) if layer.name in masks]
        if kept:
            counts[tower.name] = _size_and_kept(kept)
    return {tower: 1 - left / of for tower, (of, left) in counts.items()}, 1 - _share(masks.values())


def _size_and_kept(masks: Iterable[Tensor]) -> tuple[int, int]:
    sizes = [(mask.numel(), int(mask.count_nonzero())) for mask in masks]
    return sum(size for size, _ in sizes), sum(kept for _, kept in sizes)


def _share(masks: Iterable[Tensor]) -> float:
    size, kept = _size_and_kept(masks)
    return kept / size if size else 1.0


def _table(head: tuple[str, ...], rows: list[tuple[str, float]], text: Any) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {name} | {text(value)} |" for name, value in rows)]) + "\n"


def _measured(measures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    yield "## Measured\n"
    dense, pruned = measures.get("dense", {}), measures.get("pruned", {})
    if not pruned:
        yield "Nothing was evaluated when it was pruned. Measure it on your own task before you use it.\n"
        return
    lines = ["| measure | dense | pruned | over |", "|---|---|---|---|"]
    for name, found in pruned.items():
        over = f"{found['n']:,} {found['unit']}".strip()
        lines.append(f"| {name} | {measure_text(dense.get(name))} | {measure_text(found)} | {over} |")
    yield "\n".join(lines) + "\n"
    better = [f"{'more' if found['larger_is_better'] else 'less'} {name}" for name, found in pruned.items()]
    yield f"± is one standard error. Better is {', '.join(better)}.\n"


def _loading(model: nn.Module, adapter: Adapter, folder: Path, form: Form) -> str:
    code = _packed_code(folder) if form == "packed" else _dense_code(model, folder)
    return f"In this folder, once it is downloaded:\n\n```python\n{code}{_processor_code(adapter)}```\n"


def _packed_code(folder: Path) -> str:
    if _says_what_it_is(folder):
        return 'import ecoflap\n\nmodel = ecoflap.load_model(".")\n'
    return (
        "import ecoflap\n\n"
        "# Nothing here says how the model is built: build it as it was when it was pruned.\n"
        'model.load_state_dict(ecoflap.load_packed("."))\n'
    )


def _dense_code(model: nn.Module, folder: Path) -> str:
    library, kind = library_of(model), type(model).__name__
    if library == "transformers":
        return f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained(".", dtype="auto").eval()\n'
    if library == "timm" and _says_what_it_is(folder):
        return 'import timm\n\nmodel = timm.create_model("local-dir:.", pretrained=True).eval()\n'
    if library == "open_clip" and _says_what_it_is(folder):
        return 'import open_clip\n\nmodel = open_clip.create_model("local-dir:.").eval()\n'
    built = "# Nothing here says how the model is built: build it as it was when it was pruned.\n"
    pickled = sorted(path.name for path in folder.glob("*.pth"))
    if pickled:
        return f'{built}model.load_checkpoint("{pickled[0]}")  # of salesforce-lavis\n'
    file = next((path.name for path in sorted(folder.glob("*.safetensors"))), "model.safetensors")
    return f'from safetensors.torch import load_file\n\n{built}model.load_state_dict(load_file("{file}"))\n'


def _says_what_it_is(folder: Path) -> bool:
    """Whether its configuration names an architecture."""
    keys = {"model_type", "architecture", "architectures", "model_cfg"}
    files = (folder / name for name in ("config.json", "open_clip_config.json"))
    return any(keys & json.loads(file.read_text(encoding="utf-8")).keys() for file in files if file.is_file())


def _processor_code(adapter: Adapter) -> str:
    """Of what transformers reads beside a model."""
    kind = type(adapter.processor)
    if not hasattr(adapter.processor, "save_pretrained") or not kind.__module__.startswith("transformers."):
        return ""
    kinds = [one.__name__ for one in kind.__mro__]
    if any(name.startswith("PreTrainedTokenizer") for name in kinds):
        auto, name = "AutoTokenizer", "tokenizer"
    else:
        auto = "AutoImageProcessor" if "ImageProcessingMixin" in kinds else "AutoProcessor"
        name = "processor"
    return f'\nfrom transformers import {auto}\n\n{name} = {auto}.from_pretrained(".")\n'


def _recipe(known: Provenance) -> Iterator[str]:
    yield "## Recipe\n"
    run = f" (`{PurePath(known.run).name}`)" if known.run else ""
    yield f"As it was run{run}, with the names alone of what was a path:\n"
    yield f"```yaml\n{write_yaml(without_places(known.recipe))}```\n"
