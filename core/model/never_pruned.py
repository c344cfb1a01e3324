"""Say what of a model is never pruned, and why: for ``inspect``, and for a recipe that asks for it all the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from torch import nn

from ecoflap.core.errors import nearest
from ecoflap.core.model.anatomy import Anatomy, Tower


class ParameterKind(Enum):
    """Tells apart what a parameter can be that no layer is."""

    OFFERED = auto()
    EMBEDDING = auto()
    SMALL = auto()
    CONVOLUTION = auto()
    UNUSED = auto()
    NOT_LINEAR = auto()
    LEFT_OUT = auto()


@dataclass(frozen=True)
class NeverPruned:
    """Names a parameter that no layer of the anatomy is, and says why it is none.

    :param name: The name under which the model lists it first.
    :param reason: Says in words what it is, for tables and messages.
    """

    name: str
    shape: tuple[int, ...]
    kind: ParameterKind
    reason: str


NOTHING: Mapping[str, str] = {}


def never_pruned(
    model: nn.Module, anatomy: Anatomy, towers: Sequence[Tower], left_out: Mapping[str, str] = NOTHING
) -> Iterator[NeverPruned]:
    """Yield every parameter that no layer of the anatomy is.

    :param towers: All that the adapter names, also those that the anatomy leaves out.
    :param left_out: Why the adapter leaves something out, by the name of a block, module or parameter.
    """
    prunable = {id(layer.parameter) for _, layer in anatomy.layers()}
    outside = {id(tower.blocks[0].module): tower.name for tower in towers if tower.outside}
    for name, parameter in model.named_parameters():
        if id(parameter) not in prunable:
            path, _, own = name.rpartition(".")
            module = model.get_submodule(path)
            kind, reason = _being(module, own, parameter, outside.get(id(module)))
            why = why_left_out(name, left_out) if parameter.ndim >= 2 and kind is not ParameterKind.EMBEDDING else None
            yield NeverPruned(name, tuple(parameter.shape), ParameterKind.LEFT_OUT if why else kind, why or reason)


def why_left_out(name: str, left_out: Mapping[str, str]) -> str | None:
    """Give the adapter's reason for a parameter, or for the nearest module around it that it has one for."""
    while name and name not in left_out:
        name = name.rpartition(".")[0]
    return left_out.get(name)


def _being(module: nn.Module, own: str, parameter: nn.Parameter, offered: str | None) -> tuple[ParameterKind, str]:
    """Say what a parameter is, also in words."""
    of = type(module).__name__
    if offered is not None and own == "weight":
        return ParameterKind.OFFERED, f"outside the blocks; a recipe takes it in with include: [{offered}]"
    if isinstance(module, nn.Embedding) or "embed" in own:
        return ParameterKind.EMBEDDING, "embedding"
    if "bias" in own or parameter.ndim < 2:
        return ParameterKind.SMALL, "norm" if "norm" in of.lower() and own == "weight" else "bias or scale"
    if isinstance(module, nn.modules.conv._ConvNd):
        is_of_patches = "embed" in of.lower() or parameter.ndim == 4
        return ParameterKind.CONVOLUTION, "patch embedding" if is_of_patches else "convolution"
    if isinstance(module, nn.Linear):
        return ParameterKind.UNUSED, "not used by the loss, or not offered by the adapter"
    return ParameterKind.NOT_LINEAR, f"parameter of a {of}, which no linear layer applies"


def tied_names(model: nn.Module, name: str) -> list[str]:
    """Give the other names of one parameter, such as the embedding's for a head that is tied to it."""
    alike: dict[int, list[str]] = {}
    for other, parameter in model.named_parameters(remove_duplicate=False):
        alike.setdefault(id(parameter), []).append(other)
    names = next((names for names in alike.values() if name in names), [name])
    return [other for other in names if other != name]


def why_not_included(
    name: str, model: nn.Module, anatomy: Anatomy, towers: Sequence[Tower], left_out: Mapping[str, str] = NOTHING
) -> str:
    """Say why something that a recipe includes cannot be pruned, or what may have been meant.

    :param name: As the recipe has it: a tower's, a matrix's or a module's.
    :param towers: All that the adapter names, also those that the anatomy leaves out.
    :param left_out: As of :func:`never_pruned`.
    """
    offered = [tower.name for tower in towers if tower.outside or not tower.prunable]
    choices = f"Can be included here: {', '.join(offered) or 'nothing'}."
    found = never_pruned(model, anatomy, towers, left_out)
    inside = [one for one in found if one.name == name or one.name.startswith(f"{name}.")]
    if inside:
        return f"{name} is never pruned: {inside[0].name} is {_as_predicate(inside[0])}. {choices}"
    if any(layer.name == name or layer.name.startswith(f"{name}.") for _, layer in anatomy.layers()):
        return f"{name} is pruned anyway, being in a tower. {choices}"
    known = [*offered, *(parameter for parameter, _ in model.named_parameters())]
    return f"{name} is not in this model.{nearest(name, known)} {choices}"


def _as_predicate(one: NeverPruned) -> str:
    """Put a reason behind a name and ``is``; the adapter's own begin with a verb, or name what it is before a colon."""
    if one.kind is ParameterKind.LEFT_OUT:
        return f"left out: {one.reason}"
    if one.kind in (ParameterKind.OFFERED, ParameterKind.UNUSED):
        return one.reason
    return f"an {one.reason}" if one.reason[0] in "aeiou" else f"a {one.reason}"
