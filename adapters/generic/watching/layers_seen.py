"""Make the layers of a block of the products that were seen in it."""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

from torch import nn

from ecoflap.adapters.generic.watching.watch import OWN, Run, Use
from ecoflap.core.model.anatomy import Layer, Layout, Part

ROUTER = "router: it chooses which experts run, or which tokens are read"
GATE = "gate of one number"
PRECISE = "its model keeps it in 32 bits, whatever the others are in"
SHARED = "is applied to the tokens of two towers"
BIAS, OTHERWISE = "bias", "is applied in another way than as a matrix"
UNSEEN = "is not used when the model reads"
VISION = "vision"
"""The tower that reads images, whose patches are told from padding where they come in rows."""


@dataclass(frozen=True)
class Texts:
    """Says how long the texts are that a model was given, by the tower that reads them.

    :param rows: How many there are.
    :param lengths: By tower; no two are equal.
    :param read: What the model was given in all, in words.
    :param elsewhere: The tower of every block that reads none of them; by default its path tells.
    """

    rows: int
    lengths: Mapping[str, int]
    read: str = "a text"
    elsewhere: str = ""

    def of(self, shape: Sequence[int]) -> str | None:
        """Name the tower whose tokens hidden states of a shape are; None where they are no text's.

        Some models carry several hidden states of each token, side by side in a first axis or in the last but one. A
        square of patches is as high as it is wide.
        """
        wanted = {(self.rows, length): tower for tower, length in self.lengths.items()}
        places = {3: [shape[:2]], 4: [shape[1:3], shape[:2] if shape[1:2] != shape[2:3] else ()]}.get(len(shape), [])
        return next((wanted[at] for at in map(tuple, places) if at in wanted), None)


def layers_seen(
    model: nn.Module, block: str, runs: Sequence[Run], towers: Mapping[str, str], texts: Texts
) -> tuple[list[Layer], dict[str, str]]:
    """Give every matrix that was applied in a block, in the order they run; then those of experts that did not.

    :param runs: The block's calls.
    :param towers: The tower of each block.
    :return: The layers; and by its parameter, why a matrix is none of them.
    """
    chosen = {name for run in runs for name in run.chosen}
    own = _own_experts(model, block, runs) if chosen else {}
    layers, left_out, seen = list[Layer](), dict[str, str](), set[tuple[str, int]]()
    used = [(run, use) for run in runs for use in run.uses]
    shared = {key for key, readers in _readers(used, towers, texts).items() if len(readers) > 1}
    for run, use in used:
        part, experts = _part(model, use), _experts(model, use, run)
        key = use.parameter, -1 if part is None or experts else part[0]
        if key in seen:
            continue
        seen.add(key)
        reason = ROUTER if use.parameter in chosen else _why_no_layer(model, block, use)
        reason = reason or (SHARED if (use.parameter, use.offset) in shared else "")
        if reason:
            left_out[use.parameter] = reason
        elif use.parameter not in own:
            layers += _routed(model, use, experts) or [_layer(model, use, part, run, towers, texts)]
    applied = own.keys() | {parameter for parameter, _ in seen}
    return [*layers, *own.values()], left_out | dict(_not_applied(model, block, runs, applied, texts))


def _readers(
    used: Sequence[tuple[Run, Use]], towers: Mapping[str, str], texts: Texts
) -> Mapping[tuple[str, int], set[str]]:
    """Give the towers whose tokens a matrix reads, by its parameter and where in that it begins."""
    readers: dict[tuple[str, int], set[str]] = {}
    for run, use in used:
        readers.setdefault((use.parameter, use.offset), set()).add(_fed(use, run, towers, texts)[0])
    return readers


def _why_no_layer(model: nn.Module, block: str, use: Use) -> str:
    """Say why what was multiplied in a block is no layer; nothing where it is one, as where it is a head.

    A router that looks its experts up in a table chooses by nothing, and weighs what they give all the same.
    """
    path = use.parameter.rpartition(".")[0]
    if path != block and "Router" in type(model.get_submodule(path)).__name__:
        return ROUTER
    if 1 in _shape(model, use):
        return GATE
    if path == block:
        return ""
    precise = getattr(model, "_keep_in_fp32_modules_strict", None) or ()  # as transformers matches these names
    return PRECISE if any(re.search(rf"(^|\.){name}($|\.)", use.parameter) for name in precise) else ""


def _not_applied(
    model: nn.Module, block: str, runs: Sequence[Run], applied: Set[str], texts: Texts
) -> Iterator[tuple[str, str]]:
    """Yield each matrix of a block that was multiplied by nothing, with why it is no layer."""
    for name, parameter in model.get_submodule(block).named_parameters(prefix=block):
        if parameter.ndim >= 2 and name not in applied and not _is_known(model, name):
            is_touched = any(name in run.touched for run in runs)
            unused = OTHERWISE if is_touched else f"{UNSEEN} {texts.read}"
            yield name, BIAS if "bias" in name.removeprefix(block) else unused


def _own_experts(model: nn.Module, block: str, runs: Sequence[Run]) -> dict[str, Layer]:
    """Make the layers of experts that are modules of their own, the matrices of an expert in the order they run.

    Of several that are called alike but for one number, some are given no token, or do not run, where a router chose
    others: nothing else tells experts from any list of modules, nor an expert's number from that of its ``w2``.
    """
    uses = [use for run in runs for use in run.uses]
    reached = {use.parameter for use in uses if prod(use.shape[:-1])}
    alike: dict[str, list[str]] = {}
    for name, parameter in model.get_submodule(block).named_parameters(prefix=block):
        for key in _but_for_a_number(name) if parameter.ndim == 2 else ():
            alike.setdefault(key, []).append(name)
    own: dict[str, Layer] = {}
    for use in (use for use in uses if use.parameter in reached):
        keys = (key for key in _but_for_a_number(use.parameter) if not reached.issuperset(alike.get(key, ())))
        key = next(keys, "")
        for name in alike.get(key, ()):
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            layer = Layer(name, module, attribute, layout="routed", transposed=use.transposed, of_experts=key)
            own.setdefault(name, layer)
    return own


def _but_for_a_number(name: str) -> list[str]:
    """Give a name with each of its numbers left out in turn, the last one first."""
    return [f"{name[: at.start()]}*{name[at.end() :]}" for at in reversed([*re.finditer(r"\d+", name)])]


def _routed(model: nn.Module, use: Use, experts: Sequence[Part]) -> list[Layer]:
    """Make a layer of each expert of a parameter."""
    path, _, attribute = use.parameter.rpartition(".")
    module = model.get_submodule(path)
    return [
        Layer(_name(use, part), module, attribute, layout="routed", part=part, transposed=use.transposed)
        for part in experts
    ]


def _layer(
    model: nn.Module, use: Use, part: tuple[int, int] | None, run: Run, towers: Mapping[str, str], texts: Texts
) -> Layer:
    path, _, attribute = use.parameter.rpartition(".")
    reads, layout = _fed(use, run, towers, texts)
    module = model.get_submodule(path)
    return Layer(_name(use, part), module, attribute, reads, layout, part=part, transposed=use.transposed)


def _name(use: Use, part: Part | None) -> str:
    if part is None:
        return use.parameter
    return f"{use.parameter}[{part}]" if isinstance(part, int) else f"{use.parameter}[{part[0]}:{part[1]}]"


def _fed(use: Use, run: Run, towers: Mapping[str, str], texts: Texts) -> tuple[str, Layout]:
    """Say which tower's tokens a matrix reads, empty for its own, and how they are laid out."""
    if use.read and OWN not in use.read:
        sources = [towers[name] for mark in sorted(use.read) for name in sorted(run.reads[mark]) if name in towers]
        if sources:
            return sources[-1], "batch token" if sources[-1] in texts.lengths else "selected"
    own = texts.of(run.shape)
    if own is None:
        return "", "selected"
    length, other = texts.lengths[own], texts.of(use.shape)
    if other not in (None, own):
        return str(other), "batch token"
    if own == VISION != towers[run.name]:  # a matrix before the tower, which reads the same patches
        return own, "batch token"
    if tuple(use.shape[:2]) == (length, texts.rows) and len(use.shape) == 3:
        return "", "token batch"
    return "", "batch token" if prod(use.shape[:-1]) == length * texts.rows else "selected"


def _is_known(model: nn.Module, name: str) -> bool:
    """Say whether a parameter is of a kind that is never pruned, whatever runs."""
    module = model.get_submodule(name.rpartition(".")[0])
    return isinstance(module, nn.Embedding | nn.modules.conv._ConvNd)


def _experts(model: nn.Module, use: Use, run: Run) -> Sequence[Part]:
    """Give the parts of a parameter that are experts: along its first of three axes, or rows that a router chose.

    Rows are an expert's where a router ran, and all that were read are equally many and not the whole.
    """
    shape = _shape(model, use)
    if len(shape) == 3:
        return range(shape[0])
    read = {_part(model, one) for one in run.uses if one.parameter == use.parameter}
    heights = {part[1] - part[0] for part in read if part is not None}
    height = max(heights, default=0)
    if not run.chosen or None in read or len(heights) != 1 or shape[0] % height or height * len(read) == shape[0]:
        return ()
    return [(begin, begin + height) for begin in range(0, shape[0], height)]


def _part(model: nn.Module, use: Use) -> tuple[int, int] | None:
    """Say which rows of its parameter a product reads; None for all of it, or one of its experts."""
    shape = _shape(model, use)
    if len(shape) == 3 or use.size == prod(shape):
        return None
    columns = shape[1]
    return use.offset // columns, (use.offset + use.size) // columns


def _shape(model: nn.Module, use: Use) -> tuple[int, ...]:
    return tuple(model.get_parameter(use.parameter).shape)
