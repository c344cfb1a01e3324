"""Make the layers of a block of the products that were seen in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from ecoflap.adapters.generic.watch import OWN, Run, Use
from ecoflap.core.model.anatomy import Layer, Layout

ROUTER = "router: it chooses which experts run"
GATE = "gate of one number"
BIAS, OTHERWISE = "bias", "is applied in another way than as a matrix"
UNSEEN = "is not used when the model reads a text, or an image and a text"


@dataclass(frozen=True)
class Texts:
    """Says how long the texts are that a model was given, by the tower that reads them.

    :param rows: How many there are.
    :param lengths: By tower; no two are equal.
    """

    rows: int
    lengths: Mapping[str, int]

    def of(self, shape: Sequence[int]) -> str | None:
        """Name the tower whose tokens hidden states of a shape are; None where they are no text's."""
        wanted = {(self.rows, length): tower for tower, length in self.lengths.items()}
        return wanted.get(tuple(shape[:2])) if len(shape) == 3 else None  # type: ignore[arg-type]


def layers_seen(
    model: nn.Module, block: str, runs: Sequence[Run], towers: Mapping[str, str], texts: Texts, left_out: dict[str, str]
) -> Iterator[Layer]:
    """Yield every matrix that was applied in a block, in the order they run.

    :param runs: The block's calls.
    :param towers: The tower of each block.
    :param left_out: Takes the reason of each matrix that is none of the layers.
    """
    chosen = {name for run in runs for name in run.chosen}
    seen: set[tuple[str, int]] = set()
    for run in runs:
        for use in run.uses:
            part = _part(model, use)
            key = use.parameter, -1 if part is None or isinstance(part, str) else part[0]
            if key in seen:
                continue
            seen.add(key)
            reason = ROUTER if use.parameter in chosen else GATE if 1 in _shape(model, use) else ""
            if reason:
                left_out[use.parameter] = reason
                continue
            yield from _layers(model, use, part, run, towers, texts)
    for name, parameter in model.get_submodule(block).named_parameters():
        whole = f"{block}.{name}"
        if parameter.ndim >= 2 and whole not in {used for used, _ in seen} and not _is_known(model, whole):
            is_touched = any(whole in run.touched for run in runs)
            left_out.setdefault(whole, BIAS if "bias" in name else OTHERWISE if is_touched else UNSEEN)


def _layers(
    model: nn.Module, use: Use, part: tuple[int, int] | str | None, run: Run, towers: Mapping[str, str], texts: Texts
) -> Iterator[Layer]:
    path, _, attribute = use.parameter.rpartition(".")
    module = model.get_submodule(path)
    if part == "experts":
        for expert in range(_shape(model, use)[0]):
            yield Layer(
                f"{use.parameter}[{expert}]", module, attribute, layout="routed", part=expert, transposed=use.transposed
            )
        return
    reads, layout = _fed(use, run, towers, texts)
    name = use.parameter if part is None else f"{use.parameter}[{part[0]}:{part[1]}]"
    yield Layer(name, module, attribute, reads, layout, part=part, transposed=use.transposed)  # type: ignore[arg-type]


def _fed(use: Use, run: Run, towers: Mapping[str, str], texts: Texts) -> tuple[str, Layout]:
    """Say which tower's tokens a matrix reads, empty for its own, and how they are laid out."""
    if use.read and OWN not in use.read:
        sources = [towers[name] for mark in sorted(use.read) for name in sorted(run.reads[mark]) if name in towers]
        if sources:
            return sources[-1], "batch token" if sources[-1] in texts.lengths else "selected"
        return "", "selected"
    own = texts.of(run.shape)
    if own is None:
        return "", "selected"
    length, other = texts.lengths[own], texts.of(use.shape)
    if other not in (None, own):
        return str(other), "batch token"
    if tuple(use.shape[:2]) == (length, texts.rows) and len(use.shape) == 3:
        return "", "token batch"
    return "", "batch token" if prod(use.shape[:-1]) == length * texts.rows else "selected"


def _is_known(model: nn.Module, name: str) -> bool:
    """Say whether a parameter is of a kind that is never pruned, whatever runs."""
    module = model.get_submodule(name.rpartition(".")[0])
    return isinstance(module, nn.Embedding | nn.modules.conv._ConvNd)


def _part(model: nn.Module, use: Use) -> tuple[int, int] | str | None:
    """Say which part of its parameter a product reads: rows of it, one of its experts, or all (None)."""
    shape = _shape(model, use)
    if len(shape) == 3:
        return "experts"
    if use.size == prod(shape):
        return None
    columns = shape[1]
    return use.offset // columns, (use.offset + use.size) // columns


def _shape(model: nn.Module, use: Use) -> tuple[int, ...]:
    return tuple(model.get_parameter(use.parameter).shape)
