"""Say what of a model is never pruned, and why: for ``inspect``, and for a recipe that asks for it all the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from ecoflap.core.errors import nearest
from ecoflap.core.model.anatomy import Anatomy, Tower


@dataclass(frozen=True)
class NeverPruned:
    """Names a parameter that no layer of the anatomy is, and says why it is none.

    :param name: The name under which the model lists it first.
    """

    name: str
    shape: tuple[int, ...]
    reason: str


def never_pruned(model: nn.Module, anatomy: Anatomy, towers: Sequence[Tower]) -> Iterator[NeverPruned]:
    """Yield every parameter that no layer of the anatomy is.

    :param towers: All that the adapter names, also those that the anatomy leaves out.
    """
    prunable = {id(layer.weight) for _, layer in anatomy.layers()}
    outside = {id(tower.blocks[0].module): tower.name for tower in towers if tower.outside}
    for name, parameter in model.named_parameters():
        if id(parameter) not in prunable:
            path, _, own = name.rpartition(".")
            module = model.get_submodule(path)
            yield NeverPruned(name, tuple(parameter.shape), _reason(module, own, parameter, outside.get(id(module))))


def _reason(module: nn.Module, own: str, parameter: nn.Parameter, offered: str | None) -> str:
    kind = type(module).__name__
    if offered is not None and own == "weight":
        return f"outside the blocks; a recipe takes it in with include: [{offered}]"
    if isinstance(module, nn.Embedding) or "embed" in own:
        return "embedding"
    if "bias" in own or parameter.ndim < 2:
        return "norm" if "norm" in kind.lower() and own == "weight" else "bias or scale"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "patch embedding" if "embed" in kind.lower() or parameter.ndim == 4 else "convolution"
    if isinstance(module, nn.Linear):
        return "not used by the loss, or not offered by the adapter"
    return f"parameter of a {kind}, which no linear layer applies"


def tied_names(model: nn.Module, name: str) -> list[str]:
    """Give the other names of one parameter, such as the embedding's for a head that is tied to it."""
    alike: dict[int, list[str]] = {}
    for other, parameter in model.named_parameters(remove_duplicate=False):
        alike.setdefault(id(parameter), []).append(other)
    names = next((names for names in alike.values() if name in names), [name])
    return [other for other in names if other != name]


def why_not_included(name: str, model: nn.Module, anatomy: Anatomy, towers: Sequence[Tower]) -> str:
    """Say why something that a recipe includes cannot be pruned, or what may have been meant.

    :param name: As the recipe has it: a tower's, a matrix's or a module's.
    :param towers: All that the adapter names, also those that the anatomy leaves out.
    """
    offered = [tower.name for tower in towers if tower.outside or not tower.prunable]
    choices = f"Can be included here: {', '.join(offered) or 'nothing'}."
    found = never_pruned(model, anatomy, towers)
    inside = [one for one in found if one.name == name or one.name.startswith(f"{name}.")]
    if inside:
        return f"{name} is never pruned: {inside[0].name} is {_article(inside[0].reason)}. {choices}"
    if any(layer.name == name or layer.name.startswith(f"{name}.") for _, layer in anatomy.layers()):
        return f"{name} is pruned anyway, being in a tower. {choices}"
    known = [*offered, *(parameter for parameter, _ in model.named_parameters())]
    return f"{name} is not in this model.{nearest(name, known)} {choices}"


def _article(reason: str) -> str:
    if reason.startswith(("not ", "outside ")):
        return reason
    return f"an {reason}" if reason[0] in "aeiou" else f"a {reason}"
