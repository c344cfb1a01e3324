"""Take a model apart by what was seen of it in one forward: towers in the order they run, and what is left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn

from ecoflap.adapters.generic.watching.layers_seen import VISION, Texts, layers_seen
from ecoflap.adapters.generic.watching.stacks import Stack
from ecoflap.adapters.generic.watching.watch import Run, Watched
from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Block, Layer, Tower
from ecoflap.core.model.never_pruned import tied_names

SEEING = ("vision", "visual", "image", "vit")
CONNECTING = (
    "qformer", "resampler", "perceiver", "connector", "projector", "merger", "abstractor", "bridge", "adapter",
)  # fmt: skip
"""A stack whose path has one of these words is called by it, and kept by default; what it reads shows as it runs."""
IDLE = "does not run when the model reads"
UNUSED = "runs, and the loss does not depend on it"
ELSEWHERE = "is applied outside the blocks, and not once by a linear layer of its own"
PICKED = "reads what was picked of rows of patches, in which padding cannot be told"
EACH = "runs anew for each image, of which there may be any number"
TABLE = "is a table, too, in which tokens are looked up"
BETWEEN = "runs between the blocks of another tower"
OVERWRITTEN = "something is written into its output in place, so that it cannot be kept"


@dataclass(frozen=True, eq=False)
class SeenBlock(Block):
    """Is a block with the layers that were seen to run in it.

    :param layers: In the order they run.
    """

    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class TakenApart:
    """Holds a model taken apart.

    :param towers: In the order they run.
    :param left_out: Why something is no layer, by the name of a block or a parameter.
    :param inputs: What it ran on.
    """

    towers: list[Tower] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class _Segment:
    """Holds a part of the forward: the blocks of one stack or of several that are one tower, or one matrix outside.

    :param runs: The calls, by the name of each block, in the order of the first.
    :param ends: The last blocks of the stacks.
    """

    tower: str
    runs: dict[str, list[Run]]
    ends: list[str]
    outside: bool = False


def take_apart(model: nn.Module, stacks: Sequence[Stack], watched: Watched, texts: Texts) -> TakenApart:
    """Take a model apart.

    :param texts: The shapes of the texts that it was given.
    :raises ModelError: Where a stack reads a text in a form in which its padding cannot be told.
    """
    names = {name: stack for stack in stacks for name in stack.names}
    ran = {run.name for run in watched.runs}
    needed = watched.made_of(watched.result) & ran
    found = TakenApart()
    for name in names:
        if name not in needed:
            found.left_out[name] = UNUSED if name in ran else f"{IDLE} {texts.read}"
    segments = [*_segments(model, watched, names, needed, texts, found)]
    for segment in segments:
        _refuse_other_forms(segment, watched, texts)
    towers = {name: segment.tower for segment in segments for name in segment.runs}
    for segment in segments:
        tapped = _tapped(segment, watched, needed)
        blocks = []
        for name, runs in segment.runs.items():
            module = model.get_submodule(name)
            layers, left_out = layers_seen(model, name, runs, towers, texts)
            found.left_out.update({one: why for one, why in left_out.items() if one not in found.left_out})
            blocks.append(SeenBlock(name, module, segment.tower, len(runs), name in tapped, tuple(layers)))
        kept = segment.outside or segment.tower.startswith(CONNECTING)
        found.towers.append(Tower(segment.tower, tuple(blocks), prunable=not kept, outside=segment.outside))
    return found


def _refuse_other_forms(segment: _Segment, watched: Watched, texts: Texts) -> None:
    """Refuse a stack that reads a text in a form in which its padding cannot be told.

    Some models pad a text to windows of their own, or lay text and image side by side.

    :raises ModelError: Naming the stack, with the shape.
    """
    name, runs = next(iter(segment.runs.items()))
    shape = runs[0].shape
    is_told = segment.outside or segment.tower.startswith(CONNECTING) or texts.of(shape) is not None
    if is_told or not watched.made_of(frozenset().union(*runs[0].reads.values())) & {"input_ids", "decoder_input_ids"}:
        return
    lengths = " and ".join(f"{texts.rows}×{length}" for length in texts.lengths.values())
    raise ModelError(
        f"{name} reads texts as {'×'.join(map(str, shape))}, where it was given {lengths} tokens: it pads them, turns "
        f"them or puts others beside them, so what is padding cannot be told. A model of this kind needs an adapter of "
        f"its own: docs/adapters.md"
    )


def _segments(
    model: nn.Module, watched: Watched, names: Mapping[str, Stack], needed: set[str], texts: Texts, found: TakenApart
) -> Iterator[_Segment]:
    """Cut what ran into segments, in order. What runs between the blocks of a larger one is left out."""
    runs: dict[str, list[Run]] = {}
    first: dict[str, int] = {}
    for at, run in enumerate(watched.runs):
        if run.name in needed:
            runs.setdefault(run.name, []).append(run)
            first.setdefault(run.name, at)
    of_stack: dict[str, list[str]] = {}
    for name in runs:
        of_stack.setdefault(names[name].path if name in names else name, []).append(name)
    for path in [path for path, inside in of_stack.items() if inside[0] not in names]:
        reason = _why_no_layer(model, path, runs[path], watched, texts)
        if reason is not None:
            found.left_out[path] = reason
            del of_stack[path]
    for path in [path for path, inside in of_stack.items() if _is_run_for_each(inside, names, runs, texts)]:
        found.left_out.update(dict.fromkeys(of_stack.pop(path), EACH))
    kept = {path: inside for path, inside in of_stack.items() if not _is_between(path, of_stack, first)}
    for path in of_stack.keys() - kept.keys():
        found.left_out.update(dict.fromkeys(of_stack[path], BETWEEN))
    taken: list[_Segment] = []
    for inside in kept.values():
        outside = inside[0] not in names
        tower = inside[0] if outside else _tower(inside[0], runs[inside[0]][0], texts)
        segment = _Segment(tower, {name: runs[name] for name in inside}, [inside[-1]], outside)
        if taken and not outside and taken[-1].tower == tower:
            taken[-1].runs.update(segment.runs)
            taken[-1].ends += segment.ends
        else:
            segment.tower = _unique(tower, [one.tower for one in taken])
            taken.append(segment)
    yield from taken


def _why_no_layer(model: nn.Module, name: str, runs: Sequence[Run], watched: Watched, texts: Texts) -> str | None:
    """Say why a matrix outside the blocks is no layer; None where its module applies it, once in a forward."""
    if name in watched.overwritten:
        return OVERWRITTEN
    if not isinstance(model.get_submodule(name), nn.Linear) or len(runs) > 1:
        return ELSEWHERE
    if f"{name}.weight" in watched.looked_up and not _is_tied_to_a_table(model, f"{name}.weight"):
        return TABLE
    return PICKED if VISION in texts.lengths and texts.of(runs[0].shape) is None else None


def _is_tied_to_a_table(model: nn.Module, name: str) -> bool:
    """Say whether an embedding holds the same weight, as of a tied head, which is looked up in as that alone."""
    owners = (model.get_submodule(other.rpartition(".")[0]) for other in tied_names(model, name))
    return any(isinstance(owner, nn.Embedding) for owner in owners)


def _is_run_for_each(
    inside: Sequence[str], names: Mapping[str, Stack], runs: Mapping[str, Sequence[Run]], texts: Texts
) -> bool:
    """Say whether the blocks of a connecting stack run as often as there are images."""
    ran = runs[inside[0]]
    if inside[0] not in names or len(ran) < texts.rows or any(run.shape[:1] == (texts.rows,) for run in ran):
        return False
    return _tower(inside[0], ran[0], texts) in CONNECTING


def _is_between(path: str, of_stack: Mapping[str, list[str]], first: Mapping[str, int]) -> bool:
    """Say whether something runs between the blocks of a stack that has more of them."""
    begins, mine = first[of_stack[path][0]], len(of_stack[path])
    others = (inside for other, inside in of_stack.items() if other != path and len(inside) > mine)
    return any(first[inside[0]] < begins < first[inside[-1]] for inside in others)


def _tower(name: str, run: Run, texts: Texts) -> str:
    """Name the tower of a stack."""
    read = texts.of(run.shape) or texts.elsewhere
    if read:
        return read
    path = name.lower()
    word = next((word for word in CONNECTING if word in path), None)
    return word or ("vision" if any(word in path for word in SEEING) else path.split(".")[-2])


def _unique(tower: str, taken: Sequence[str]) -> str:
    number = 2
    name = tower
    while name in taken:
        name, number = f"{tower}_{number}", number + 1
    return name


def _tapped(segment: _Segment, watched: Watched, needed: set[str]) -> set[str]:
    """Find the blocks whose output is used by more than the block after them, and those that end a stack."""
    names = [*segment.runs]
    after = dict(pairwise(names))
    tapped = {name for name in segment.ends if name in after} | (watched.result & after.keys())
    for run in watched.runs:
        if run.name in needed:
            read = frozenset().union(*run.reads.values())
            tapped |= {name for name in read & after.keys() if after[name] != run.name}
    return set(tapped)
