"""Predict what exports take, on disk and while they are written, from what exporters say of each view."""

from collections.abc import Sequence
from fractions import Fraction

from torch import nn

from ecoflap.core.budget.counts import Pattern, keep_count
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.records import Meanwhile, ViewSize, Vocabulary
from ecoflap.core.errors import EcoflapError, unknown
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.needs.sizes import bytes_of_weight, bytes_put_together
from ecoflap.core.packed.packing import matrices_of, vocabulary_weights
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.recipe.part_spec import PartSpec


def kept_of(size: int, sparsity: Fraction | Pattern) -> int:
    """Give how many of ``size`` weights a sparsity or a pattern keeps."""
    return sparsity.keep_of(size) if isinstance(sparsity, Pattern) else keep_count(size, sparsity)


def exported_bytes(part: PartSpec, prepared: Prepared) -> int:
    """Add up what an exporter predicts of each file, or the size of the dense weights where it predicts nothing.

    A weight that several views share is in the file of each.
    """
    size = 0
    for view in _sizes(part, prepared, False):
        with blaming(f"the exporter {part.use}, asked for the size of its files,"):
            predicted: int | None = part.options.predicted_bytes(view)
        size += view.parameters * view.width if predicted is None else predicted
    return size


def meanwhile_of(prepared: Prepared, offloaded: bool) -> dict[str, Meanwhile]:
    """Give what each exporter takes while it writes the view that takes most, where it says so.

    :param offloaded: Whether the weights stay in files.
    """
    found: dict[str, Meanwhile] = {}
    for part in prepared.recipe.export:
        with blaming(f"the exporter {part.use}, asked what it takes while it writes,"):
            asked = [part.options.meanwhile(view) for view in _sizes(part, prepared, offloaded)]
        if said := [one for one in (*asked, found.get(part.use)) if one is not None]:
            found[part.use] = Meanwhile(max(one.memory for one in said), max(one.disk for one in said))
    return found


def _sizes(part: PartSpec, prepared: Prepared, offloaded: bool) -> list[ViewSize]:
    """Measure each view that an exporter writes, or the whole model."""
    with blaming(f"the exporter {part.use}, asked for its views,"):
        views = part.options.views_written(prepared.context)
        wrong = [name for name in views or () if name not in prepared.views]
        if wrong:
            raise EcoflapError(f"the exporter {part.use}: {unknown('view', str(wrong[0]), tuple(prepared.views))}")
        modules = [prepared.model] if views is None else [prepared.views[name].module for name in views]
    return [_size(module, prepared, offloaded) for module in modules]


def _size(module: nn.Module, prepared: Prepared, offloaded: bool) -> ViewSize:
    inside = {id(parameter): parameter.numel() for parameter in module.parameters()}
    pruned = [
        ([layer for _, layer in pool.layers if id(layer.parameter) in inside], pool.sparsity) for pool in prepared.pools
    ]
    layers = tuple(layer for own, _ in pruned for layer in own)
    prunable = sum(layer.size for layer in layers)
    kept = sum(kept_of(sum(layer.size for layer in own), sparsity) for own, sparsity in pruned)
    largest, width = max(inside.values(), default=0), bytes_of_weight(prepared)
    made = bytes_put_together(prepared) if offloaded else 0
    words, others = vocabulary_of(module, prepared.model), unpruned_of(module, prepared.model, layers)
    return ViewSize(sum(inside.values()), prunable, kept, largest, width, offloaded, layers, made, words, others)


def vocabulary_of(view: nn.Module, model: nn.Module) -> tuple[Vocabulary, ...]:
    """Find the embeddings and heads of a model that a view of it has; one that is tied is both."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    matrices = {name: parameter for name, parameter in parameters.items() if parameter.ndim == 2}
    known = {id(matrices[name]) for name in vocabulary_weights(model) if name in matrices}
    are_embeddings: dict[nn.Parameter, set[bool]] = {}
    for module in view.modules():
        weight = module._parameters.get("weight")
        if weight is not None and id(weight) in known:
            are_embeddings.setdefault(weight, set()).add(isinstance(module, nn.Embedding))
    return tuple(Vocabulary(weight, True in kinds, False in kinds) for weight, kinds in are_embeddings.items())


def unpruned_of(view: nn.Module, model: nn.Module, pruned: Sequence[Layer]) -> tuple[Layer, ...]:
    """Find the matrices of linear layers that a view of a model has beside those that are pruned, each once."""
    found: dict[int, Layer] = {}
    for name, form in matrices_of(model).items():
        owner, _, attribute = name.rpartition(".")
        layer = Layer(name, model.get_submodule(owner), attribute, transposed=form.transposed)
        found.setdefault(id(layer.parameter), layer)
    inside = {id(parameter) for parameter in view.parameters()} - {id(layer.parameter) for layer in pruned}
    return tuple(layer for key, layer in found.items() if key in inside)
