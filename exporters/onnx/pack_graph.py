"""Pack what was pruned in an exported graph, and store what stays dense in the 16 bits that it has in the model.

Products, pruned or not, and embeddings and heads where a recipe says so may be rounded to int8.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.records import StoredTensor
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import ModelError
from ecoflap.core.pruning.masks import bits_in, popcount, shape_in
from ecoflap.exporters.onnx import products
from ecoflap.exporters.onnx.encoding import OVERHEAD, pack
from ecoflap.exporters.onnx.forms.coo import to_coo
from ecoflap.exporters.onnx.forms.product import INT8
from ecoflap.exporters.onnx.graph import Graph
from ecoflap.exporters.onnx.scratch import Keep, in_memory, rows_of
from ecoflap.exporters.onnx.settings import Storage

SEMI_STRUCTURED = Pattern(2, 4)
_HAS_TWO = np.array([four.bit_count() == 2 for four in range(16)])

FOLDED_AT_MOST = 1 << 30
"""Bytes of the largest constant that onnxruntime computes when it loads a model."""

NARROWED_FROM = 1 << 12
"""Bytes from which on an initializer is worth a node that casts it."""


class GraphPacker:
    """Takes one exported graph on its way to a file.

    :param masks: By layer.
    :param types: The type that each parameter has in the model, by its name; the graph computes in float32.
    :param vocabulary: Names of the embeddings and heads that are rounded to int8, pruned or not.
    :param unpruned: Names of matrices besides, which no mask is of, that are rounded to int8 where they are products.
    :param keep: Keeps arrays that are made of weights until all are written.
    :ivar pruned: The graph's initializers that were pruned, and the layer that each is.
    :ivar lost: Pruned layers that became part of another constant of the graph, and cannot be packed.
    :ivar stored: How each pruned layer is stored, and each that was rounded; empty until :meth:`pack` is called.
    :ivar left: Embeddings and heads that were to be rounded, and are not.
    :ivar not_finite: Matrices that no mask is of and that are not rounded, as a weight of each is not finite.
    :ivar rounded: Parameters that were rounded to int8, and whether a scale is one of a row, and not of a column.
    """

    def __init__(
        self,
        graph: Graph,
        masks: Mapping[str, Tensor],
        types: Mapping[str, torch.dtype],
        storage: Storage,
        keep: Keep = in_memory,
        vocabulary: Collection[str] = (),
        unpruned: Collection[str] = (),
    ) -> None:
        self.graph, self.masks, self.storage, self._keep = graph, masks, storage, keep
        self.pruned = {name: layer for name, layer in graph.names.items() if layer in masks}
        self.lost = [layer for layer in graph.lost if layer in masks]
        self.stored: list[StoredTensor] = []
        self.rounded: dict[str, bool] = {}
        self.left: list[str] = []
        self.not_finite: list[str] = []
        self._vocabulary = {name: layer for name, layer in graph.names.items() if layer in vocabulary}
        self._unpruned = {name: layer for name, layer in graph.names.items() if layer in unpruned}
        self._own = {name: types[layer] for name, layer in graph.names.items()}
        self._wanted = {name: storage.values or self._own[name] for name in (*self.pruned, *self._unpruned)}

    def pack(self) -> None:
        """Pack the graph in place.

        :raises ModelError: Where a type loses a weight, and may not.
        """
        vocabulary = {name: stored for name in self._vocabulary if (stored := self._round_vocabulary(name))}
        self.left = [layer for name, layer in self._vocabulary.items() if name not in vocabulary]
        self.pruned = {name: layer for name, layer in self.pruned.items() if name not in vocabulary}
        for name in self.pruned:
            if self._wanted[name] != self._own[name]:
                self._round(name)
        packed = self._packed() if self.storage.weights in ("bitmask", "packed_op") else ()
        found = {tensor.name: tensor for tensor in (*vocabulary.values(), *packed) if tensor.form != "dense"}
        sizes = self._narrow()
        found |= {layer: self._dense(layer, sizes[name]) for name, layer in self.pruned.items() if name in sizes}
        found |= {layer: self._dense(layer, 4 * prod(shape_in(self.masks, layer))) for layer in self.lost}
        in_order = (layer for layer in self.masks if layer in found)
        self.stored = [replace(found[layer], shape=shape_in(self.masks, layer)) for layer in in_order]
        self.stored += [tensor for tensor in vocabulary.values() if tensor.name not in self.masks]
        unpruned = ((name, found[layer]) for name, layer in self._unpruned.items() if layer in found)
        self.stored += [replace(tensor, shape=self._shape(name, tensor.shape)) for name, tensor in unpruned]

    def sparse(self) -> tuple[list[StoredTensor], dict[str, NDArray[np.uint8]]]:
        """Make sparse initializers of what was pruned: how each layer is stored then, and those by name."""
        stored, sparse = to_coo(self.graph.model, self.pruned, self._keep)
        found = {tensor.name: tensor for tensor in stored}
        said = (found.get(tensor.name, tensor) for tensor in self.stored)
        return [replace(one, shape=tensor.shape) for one, tensor in zip(said, self.stored, strict=True)], sparse

    def _round(self, name: str) -> None:
        """Give a weight the values that its type can hold, some rows at a time."""
        import onnx_ir as ir

        value = self.graph.model.graph.initializers[name]
        array, gone = value.const_value.numpy(), 0
        made = np.empty_like(array)
        for rows, target in zip(rows_of(array), rows_of(made), strict=True):
            wide = torch.from_numpy(rows)
            rounded = wide.to(self._wanted[name]).to(wide.dtype)
            gone += int(((wide != 0) & ((rounded == 0) | (rounded.isinf() & wide.isfinite()))).count_nonzero())
            target[...] = rounded.numpy()
        if gone and not self.storage.lossy:
            dtype = dtype_name(self._wanted[name])
            raise ModelError(
                f"{self.pruned[name]}: {gone} weights that were kept become zero or infinite in {dtype}. Use values: "
                f"auto or a wider type, or allow it with lossy: true."
            )
        value.const_value = ir.tensor(self._keep(made), name=name)

    def _round_vocabulary(self, name: str) -> StoredTensor | None:
        """Round an embedding or a head to int8; None where it stays as it is."""
        weight, layer = self.graph.model.graph.initializers[name], self._vocabulary[name]
        array = weight.const_value.numpy()
        dense, nonzeros = array.size * self._own[name].itemsize, int(np.count_nonzero(array))
        if array.nbytes < NARROWED_FROM:
            return None
        by_rows = self._has_scales_of_rows(name)
        if (found := products.round_vocabulary(self.graph.model, weight, layer, self._keep)) is None:
            return None
        self.rounded[layer] = by_rows
        return StoredTensor(layer, found[0], self._shape(name, array.shape), nonzeros, dense, found[1])

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape that a matrix has in the model, by that in the graph."""
        return shape[::-1] if name in self.graph.transposed else shape

    def _has_scales_of_rows(self, name: str) -> bool:
        """Say whether a scale is one of a row of the model's parameter, as long as its readers are what they were."""
        of_columns = products.is_transposed(self.graph.model.graph.initializers[name]) is False
        return (name in self.graph.transposed) == of_columns

    def _packed(self) -> Iterator[StoredTensor]:
        """Pack type by type the layers that get smaller so, and the matrices besides that are rounded."""
        worthwhile = {name: layer for name, layer in self.pruned.items() if self._shrinks(name, layer)}
        worthwhile |= self._worth_rounding()
        by_rows = {layer: self._has_scales_of_rows(name) for name, layer in worthwhile.items()}
        for dtype in dict.fromkeys(self._wanted.values()):
            names = {name: layer for name, layer in worthwhile.items() if self._wanted[name] == dtype}
            patterns = {layer: self._pattern(layer) for layer in names.values() if layer in self.masks}
            storage = replace(self.storage, values=dtype)
            for tensor in pack(self.graph.model, names, storage, patterns, self._keep):
                if tensor.form == INT8.form:
                    self.rounded[tensor.name] = by_rows[tensor.name]
                yield tensor

    def _worth_rounding(self) -> dict[str, str]:
        """Find the matrices without a mask that are rounded; those that cannot be are noted."""
        found = {}
        for name, layer in self._unpruned.items():
            weight = self.graph.model.graph.initializers[name].const_value.numpy()
            if not (self._may_be_rounded(name) and self._takes_less(name, int(np.count_nonzero(weight)), weight.size)):
                continue
            if all(np.isfinite(rows).all() for rows in rows_of(weight)):
                found[name] = layer
            else:
                self.not_finite.append(layer)
        return found

    def _shrinks(self, name: str, layer: str) -> bool:
        """Say whether a pruned layer takes less packed."""
        return self._takes_less(name, popcount(bits_in(self.masks, layer)), prod(shape_in(self.masks, layer)))

    def _takes_less(self, name: str, kept: int, size: int) -> bool:
        """Say whether a weight takes less packed than dense in its type, and not just less than in float32."""
        width = self._wanted[name].itemsize
        packed = products.bytes_in_int8(kept, size) if self._may_be_rounded(name) else kept * width + size // 8
        return packed + OVERHEAD < size * width

    def _may_be_rounded(self, name: str) -> bool:
        """Say whether a weight is stored in int8 if it can be a product: it is what a linear layer multiplies by."""
        weight = self.graph.model.graph.initializers[name]
        return self.storage.int8 and products.is_transposed(weight) is not None

    def _pattern(self, layer: str) -> Pattern | None:
        return pattern_of(bits_in(self.masks, layer), shape_in(self.masks, layer))

    def _narrow(self) -> dict[str, int]:
        """Store dense matrices of 16 bits in 16 bits, and give the bytes of each matrix that is dense."""
        initializers = self.graph.model.graph.initializers
        types = {name: dtype for name, dtype in {**self._own, **self._wanted}.items() if name in initializers}
        wide = {name: initializers[name].const_value.nbytes for name in types}
        halves = {name: dtype for name, dtype in types.items() if dtype.itemsize == 2}
        return wide | _narrow(self.graph.model, halves, self._keep)

    def _dense(self, layer: str, size: int) -> StoredTensor:
        kept = popcount(bits_in(self.masks, layer))
        return StoredTensor(layer, "dense", shape_in(self.masks, layer), kept, size, size)


def pattern_of(bits: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> Pattern | None:
    """Recognise 2:4 by the packed bits of a mask, where exactly two are kept of every four inputs."""
    if shape[-1] % SEMI_STRUCTURED.m:
        return None
    packed = bits.numpy()
    fours = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[: prod(shape) // SEMI_STRUCTURED.m]
    return SEMI_STRUCTURED if _HAS_TWO[fours].all() else None


def _narrow(model: Any, types: Mapping[str, torch.dtype], keep: Keep) -> dict[str, int]:
    """Store initializers in 16 bits and cast them back in the graph, which onnxruntime does once, when it loads it.

    :param types: By the name of the initializer. One that would lose anything stays as it is, as do small ones and
        those too large to be cast while loading.
    :return: Bytes of each as it is now stored.
    """
    graph, stored = model.graph, {}
    for name, dtype in types.items():
        value = graph.initializers[name]
        large = NARROWED_FROM <= value.const_value.nbytes <= FOLDED_AT_MOST
        stored[name] = _narrowed(graph, value, dtype, keep) if large else value.const_value.nbytes
    return stored


def _narrowed(graph: Any, value: Any, dtype: torch.dtype, keep: Keep) -> int:
    import onnx_ir as ir

    wide = value.const_value.numpy()
    name, kind = value.name, {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}[dtype]
    array = wide.astype(kind.numpy())
    pairs = zip(rows_of(array), rows_of(wide), strict=True)
    if not all(np.array_equal(half.astype(wide.dtype), rows) for half, rows in pairs):
        return int(wide.nbytes)
    array = keep(array)
    graph.initializers.pop(name)
    value.name = None
    stored = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(stored)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
    widened = cast.outputs[0]
    widened.name, widened.type, widened.shape = f"{name}.float32", ir.TensorType(ir.DataType.FLOAT), value.shape
    value.replace_all_uses_with(widened)
    graph.insert_before(graph[0], cast)
    return int(array.nbytes)
