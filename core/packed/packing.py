"""Say which matrices of a model run packed, and hold them together: :class:`Packing`."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any

import torch
from torch import nn

from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import ModelError, first_of
from ecoflap.core.kernel.arena import Arena
from ecoflap.core.kernel.library import TYPES, Values
from ecoflap.core.kernel.order import Shape
from ecoflap.core.kernel.packed_module import PackedLinear
from ecoflap.core.kernel.packed_parameters import PackedParameters, hold_packed
from ecoflap.core.kernel.route import route
from ecoflap.core.packed.forms import Form, form_of, is_computed

ATTRIBUTE = "ecoflap_packing"
LEAST_SPARSITY = 0.35
"""Below it the masks cost more time than the weights that are not read save."""


@dataclass
class Packing:
    """Says what of a model is packed.

    :param values: How weights of layers are held: as they are, or in int8.
    :param embeddings: How embeddings and the head are held, pruned or not; None keeps embeddings dense, and treats a
        head that is not tied to one like any other layer.
    :param packed: The names of the weights that are, as ``state_dict()`` has them.
    :param products: In a sentence, by what path products are computed, and what zeros save there; empty on a GPU.
    :param dense: Of prunable weights that are not, each with the reason.
    :param most_zeros: The largest share of zeros in a matrix that could run packed, where zeros were counted.
    :param bytes_dense: What the packed ones took dense.
    :param bytes_packed: What they took when they were packed, masks and scales included.
    """

    values: Values = "exact"
    embeddings: Values | None = None
    products: str = ""
    packed: list[str] = field(default_factory=list)
    dense: dict[str, str] = field(default_factory=dict)
    most_zeros: float | None = None
    bytes_dense: int = 0
    bytes_packed: int = 0

    def add(self, name: str, shape: Shape, nbytes: int) -> None:
        """Count a weight as packed, in so many bytes."""
        self.packed.append(name)
        self.bytes_dense += shape.bytes_dense
        self.bytes_packed += nbytes

    def __str__(self) -> str:
        """Tell it in sentences, a line for each reason why weights are dense."""
        share = f", {self.bytes_packed / self.bytes_dense:.3f} of its bytes" if self.bytes_dense else ""
        lines = [f"{len(self.packed)} matrices run packed{_HOW[self.values]}{share}."]
        if self.embeddings is not None and self.packed:
            lines.append(f"Embeddings and head are among them{_HOW[self.embeddings]}.")
        if self.packed and self.products:
            lines.append(self.products)
        if not self.packed and self.most_zeros is not None and self.most_zeros < LEAST_SPARSITY:
            least, most = 100 * LEAST_SPARSITY, floor(1000 * self.most_zeros) / 10  # which never rounds up to the least
            lines.append(f"A matrix does from {least:.0f} % zeros on; the most that one has is {most} %.")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dense.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            lines.append(f"dense, because {reason}: {first_of(names)}")
        return "\n".join(lines)

    def held(self, is_vocabulary: bool) -> Values:
        """Say how a weight is held: one of an embedding or a head, or of a layer."""
        return self.embeddings if is_vocabulary and self.embeddings is not None else self.values


_HOW: dict[Values, str] = {"exact": "", "int8": " in int8", "int8a8": " in int8 with x in int8"}


def begun(values: Values, embeddings: Values | None) -> Packing:
    """Give a packing for the CPU, before anything is packed; warn where nothing will be multiplied fast.

    :raises KernelError: Where ``ECOFLAP_KERNEL`` names a path that cannot be taken here.
    """
    taken = route()
    if taken.library is None:
        warnings.warn(f"packed weights are not multiplied fast here: {taken.why}.", stacklevel=3)  # for who packs
    return Packing(values, embeddings, taken.told)


def warn_of_none(packing: Packing) -> None:
    """Warn where nothing of a model on the CPU runs packed: it is the dense one still, which nobody asked for."""
    if not packing.packed:
        why = str(packing).partition("\n")[2].replace("\n", " ") or "It has none that could."
        warnings.warn(f"no matrix of this model runs packed, all stay dense. {why}", stacklevel=3)  # for who packs


@dataclass(frozen=True)
class Candidate:
    """Names a weight that may run packed, and what it would be then.

    :param names: Its names in the model; more than one where modules share it.
    :param shape: Of all its matrices together.
    :param nbytes: What it takes at most.
    """

    names: tuple[str, ...]
    shape: Shape
    form: Form
    nbytes: int


def why_dense(
    module: nn.Module, attribute: str, shape: Shape | None, dtype: torch.dtype, is_vocabulary: bool = False
) -> str:
    """Say why a weight stays dense; empty where it can run packed.

    :param module: The one that holds it.
    :param shape: What it would be packed; None of one that is no matrix, or of a type that no kernel multiplies.
    :param is_vocabulary: Whether it is an embedding's or a head's, and how those are held was said.
    """
    form = form_of(module, attribute)
    if form is None:
        return f"{type(module).__name__} is not known to multiply with {attribute!r} as a matrix"
    if isinstance(module, nn.Embedding) and not is_vocabulary:
        return "it is an embedding, and none was said to run packed"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "its max_norm changes it when it is used"
    if dtype not in TYPES or shape is None:
        return f"{dtype_name(dtype)} is not multiplied packed"
    sparsity = 1 - shape.kept / max(1, shape.outputs * shape.inputs)
    if shape.values == "exact" and sparsity < LEAST_SPARSITY and not is_vocabulary:
        return f"less than {100 * LEAST_SPARSITY:.0f} % of it is zero"
    if shape.values != "exact" and form.most_bytes(shape) >= shape.bytes_dense:
        return "int8 with masks and scales would take no fewer bytes"
    return what_would_be_lost(module) if is_replaced(module) else ""


def what_would_be_lost(module: nn.Module) -> str:
    """Say why another module cannot be put into the place of an ``nn.Linear``; empty where it can."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "its module has hooks, which would be lost"
    if "forward" in vars(module):
        return "its module's forward was replaced, which would be lost"
    if module._buffers or module._modules or module._parameters.keys() - {"weight", "bias"}:
        return "its module holds more than a weight and a bias, which would be lost"
    return ""


def vocabulary_weights(model: nn.Module) -> frozenset[str]:
    """Name the weights of embeddings, but for computed ones, and of heads that transformers names."""
    modules = list(model.named_modules(remove_duplicate=False))
    heads = {id(module.get_output_embeddings()) for _, module in modules if hasattr(module, "get_output_embeddings")}
    named = (name for name, module in modules if id(module) in heads or _is_trained_embedding(module))
    return frozenset(f"{name}.weight" for name in named)


def _is_trained_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and not is_computed(module)


def matrices_of(model: nn.Module) -> dict[str, Form]:
    """Give the weights of two axes that int8 rounds where they take fewer bytes so, pruned or not, with their forms.

    Embeddings and heads that transformers names are none of them: how those are held is said by itself.
    """
    words, found, others = vocabulary_weights(model), {}, set()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        owner, _, attribute = name.rpartition(".")
        form = form_of(model.get_submodule(owner), attribute)
        if form is None or parameter.ndim != 2 or name in words:
            others.add(id(parameter))
        else:
            found[name] = form
    return {name: form for name, form in found.items() if id(parameters[name]) not in others}


def is_expected(model: nn.Module, names: Sequence[str]) -> bool:
    """Say whether a weight could be expected to run packed that was not pruned, by what its modules are."""
    return any(_is_expected(model, name) for name in names)


def _is_expected(model: nn.Module, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    weight = getattr(module, attribute)
    is_linear = isinstance(module, nn.Linear) and attribute == "weight"
    is_several = weight.ndim == 3 and len(weight) > 1 and not isinstance(module, nn.modules.conv._ConvNd)
    return is_linear or is_several or form_of(module, attribute) is not None


def is_replaced(module: nn.Module) -> bool:
    """Say whether another module is put into the place of one, rather than that it holds its parameters packed."""
    return type(module) is nn.Linear or type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear


def arena_of(candidates: Iterable[Candidate]) -> Arena:
    """Reserve memory for all that will run packed."""
    return Arena(candidate.nbytes for candidate in candidates)


def put_packed(model: nn.Module, candidate: Candidate, packed: torch.Tensor, ends: Sequence[int]) -> None:
    """Have modules multiply with packed weights that held them dense, with their biases.

    :param packed: Holds the matrices of the weight, and may be longer.
    :param ends: Behind how many bytes each of them ends.
    """
    packed = packed[: ends[-1]]
    made: dict[int, PackedLinear] = {}  # one module may lie in two places, and stays one
    for name in candidate.names:
        owner, _, attribute = name.rpartition(".")
        before: Any = model.get_submodule(owner)
        if isinstance(before, PackedLinear):  # it lies in a module that lies in several places
            continue
        if is_replaced(before):
            parent, _, child = owner.rpartition(".")
            module = made.get(id(before)) or PackedLinear(packed, before.bias).train(before.training)
            made[id(before)] = module
            setattr(model.get_submodule(parent), child, module)
        elif not _is_held(before, attribute):  # older transformers give T5's embeddings, one module, three names
            hold_packed(before, attribute, packed, ends, candidate.form.transposed)


def _is_held(module: nn.Module, attribute: str) -> bool:
    return isinstance(module, PackedParameters) and attribute in module.held


def packed_modules(model: nn.Module) -> Iterator[tuple[str, PackedLinear | PackedParameters]]:
    """Find what runs packed already."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedParameters):
            yield name, module


def refuse_packed(model: nn.Module) -> None:
    """Refuse a model that runs packed, where dense parameters are asked for."""
    names = [name for name, _ in packed_modules(model)]
    if names:
        raise ModelError(
            f"the weights of {first_of(names)} are packed already: they can be run and saved, and not "
            f"pruned or packed again. Load the model with weights='dense'."
        )
