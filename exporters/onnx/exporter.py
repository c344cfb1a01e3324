"""Write ONNX files, one a view of the model: pruned weights are stored packed, and unpacked by the graph itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Exporter, PrunedModel
from ecoflap.core.contracts.records import Exported, Meanwhile, ViewSize, Vocabulary
from ecoflap.core.dtypes import dtype_called
from ecoflap.core.errors import ModelError
from ecoflap.core.kernel.library_file import why_library_absent
from ecoflap.core.model.anatomy import Layer
from ecoflap.exporters.onnx.check import UNPACKED_AT_MOST, UNPACKING
from ecoflap.exporters.onnx.dense import write_dense
from ecoflap.exporters.onnx.encoding import OVERHEAD
from ecoflap.exporters.onnx.forms.bitmask import BITMASK
from ecoflap.exporters.onnx.forms.form import COO
from ecoflap.exporters.onnx.forms.product import FORM
from ecoflap.exporters.onnx.pack_graph import NARROWED_FROM
from ecoflap.exporters.onnx.products import bytes_in_int8, bytes_of_product, bytes_of_vocabulary, can_be_multiplied
from ecoflap.exporters.onnx.settings import Settings, Storage
from ecoflap.exporters.onnx.view import EXTERNAL_ABOVE, write_view
from ecoflap.exporters.shared.comparison import tolerance_problems
from ecoflap.exporters.shared.pruned_weights import require_masks, require_zeros, width_problems
from ecoflap.exporters.shared.views import export_views, plan_notes, plan_problems, plan_written

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
OPSETS = range(18, 23)
PACKING = {BITMASK.name: 11, COO: 26}
"""Bytes of memory for each number of a weight while it is packed in a form, measured; in others and dense 8."""
ROUNDING = 16
"""The same of a weight that is rounded to int8."""


@dataclass(frozen=True)
class Onnx:
    """Writes ``NAME.onnx`` for each view that the family has, with all the weights it needs; run again by onnxruntime.

    It buys size, not speed: the runtime unpacks weights when it loads the file, but for those of ``packed_op``. A model
    in 16 bits is computed in float32, which loses nothing, and its weights are stored in their own 16 bits.

    :param views: Names of the views that are exported; all by default.
    :param weights: ``bitmask`` stores (1-s) of a weight's bytes and a bit each. So does ``packed_op``, and makes a
        linear layer one node, which is multiplied from packed weights where the library of kernels is registered, and
        by standard operators elsewhere. ``coo`` stores the non-zeros with their indices as ONNX has it, where that is
        smaller, ``dense`` everything.
    :param form: ``function`` unpacks by a function that the file brings along, ``inline`` by plain nodes, for runtimes
        that know no local functions (OpenVINO).
    :param values: The type that pruned weights are stored in; ``auto`` is the one each has in the model. ``int8``
        rounds the matrices of linear layers of ``packed_op``, pruned or not, to whole numbers of a scale for each
        output; what it does not make a product keeps its type, as do embeddings and heads that are not pruned.
    :param embeddings: ``int8`` rounds embeddings and heads too, pruned or not, for ``packed_op``.
    :param opset: 18 to 22.
    :param tolerance: How far an output may be from torch's, in shares of the largest magnitude of that output, over
        two batch sizes and lengths; by default 1e-4. A narrower float needs more. Where weights are rounded to int8 the
        file is held to torch with the same weights rounded, within 1e-3 where nothing rounds x and else within 0.25;
        to those of the model it is held only if this is set.
    :param lossy: Whether a narrower float may turn a weight into zero or infinity. In int8 small ones become zero.
    """

    views: tuple[str, ...] | None = None
    weights: Literal["bitmask", "packed_op", "coo", "dense"] = "bitmask"
    form: Literal["function", "inline"] = "function"
    values: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    embeddings: Literal["dense", "int8"] = "dense"
    opset: int = 20
    tolerance: float | None = None
    lossy: bool = False

    densifies: ClassVar[tuple[str, ...]] = (".onnx",)

    def predicted_bytes(self, view: ViewSize) -> int:
        """Tell the size of one view's file; a weight that several views share is in the file of each."""
        dtype = dtype_called(self.values)
        stored = dtype.itemsize if dtype else view.width
        vocabulary, rounded = self._vocabulary(view), self._rounded(view)
        rest = _without([*(one.parameter for one in vocabulary), *(one.parameter for one in rounded)], view)
        dense, others = rest.prunable * stored, (rest.parameters - rest.prunable) * view.width
        others += sum(bytes_of_vocabulary(one, _kept_of(one.parameter, view)) for one in vocabulary)
        others += sum(_bytes_in_int8(one) for one in rounded)
        bits = rest.kept * stored + rest.prunable // 8
        if self.values == "int8":
            bits = bytes_in_int8(rest.kept, rest.prunable)
        packed = {BITMASK.name: bits, FORM: bits, COO: rest.kept * (stored + 3), "dense": dense}
        return others + min(dense, packed[self.weights])

    def meanwhile(self, view: ViewSize) -> Meanwhile:
        """Tell what it takes while it writes a view and runs it.

        Offloaded, it is a weight as it is narrowed or packed, a file that is no larger than one message of protobuf
        twice, and on the disk the view in float32, and either what is packed of it or, as it is run, once more dense.
        """
        file = self.predicted_bytes(view)
        wide, embedded = 4 * view.parameters, file if file <= EXTERNAL_ABOVE else 0
        widened = wide if view.width < 4 else 0
        rounded = wide if self._storage.rounds else 0  # as torch computes with it
        if view.offloaded:
            beside = (view.parameters - view.prunable) * view.width if self.weights == COO else 0
            indices = 5 * view.kept if self.weights == COO else 0  # which take 8 bytes in memory, and 3 in the file
            held = max(
                (ROUNDING if self._storage.rounds else PACKING.get(self.weights, 8)) * view.largest,
                2 * embedded + indices,
                beside if beside > EXTERNAL_ABOVE else 0,
            )
            return Meanwhile(held, max(widened + file + rounded, wide + (file if rounded else 0)))
        heads = (one for one in self._vocabulary(view) if one.is_multiplied and not _is_pruned(one.parameter, view))
        layers = view.prunable + sum(one.size for one in self._rounded(view))
        unpacking = UNPACKING.get(self.weights, 0) * (layers + sum(one.parameter.numel() for one in heads))
        is_alone = 0 < unpacking <= UNPACKED_AT_MOST
        session = unpacking + 8 * (view.parameters - layers) if is_alone else 2 * wide
        decoded = 0 if is_alone else rounded  # for onnxruntime to map
        return Meanwhile(max(widened + max(file, rounded), session) + embedded, decoded)

    def _vocabulary(self, view: ViewSize) -> list[Vocabulary]:
        """Give the embeddings and heads of a view that are rounded to int8."""
        return [one for one in view.vocabulary if self.embeddings == "int8" and _is_rounded(one)]

    def _rounded(self, view: ViewSize) -> list[Layer]:
        """Give the matrices of a view that are rounded to int8 though not pruned, as far as a plan can tell."""
        return [one for one in view.unpruned if self.values == "int8" and _shrinks(one, view.width)]

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what of the parameters, of the libraries here, and of the model keeps it from exporting."""
        yield from self._own_problems()
        yield from plan_problems(self.views, context, "onnx")
        if context.recipe.model.dtype == "auto":
            yield from width_problems({layer.name: layer.weight for _, layer in context.anatomy.layers()}, "onnx")

    def _own_problems(self) -> Iterator[str]:
        if absent := [name for name in LIBRARIES if find_spec(name) is None]:
            yield f"the exporter onnx needs {', '.join(absent)}: pip install 'ecoflap[onnx]'."
        if self.opset == 23:
            yield "opset 23: torch fixes the batch size in its rotary embeddings, so a LLaMA runs on no other. Use 20."
        elif self.opset not in OPSETS:
            yield f"opset {self.opset} is not between {OPSETS[0]} and {OPSETS[-1]}. Use 20, the default."
        if self.weights == FORM and self.form == "inline":
            yield (
                f"weights: {FORM} is an operator, which runs without ecoflap's library as a function of the file, and "
                f"form: inline is for runtimes that know none. Use weights: bitmask for those."
            )
        if self.weights in (COO, "dense") and self.form == "inline":
            yield f"form: inline is a way to unpack weights: bitmask; weights: {self.weights} has none. Take it out."
        for key in ("values", "embeddings"):
            if getattr(self, key) == "int8" and self.weights != FORM:
                yield (
                    f"{key}: int8 is for matrices that kernels multiply as they are, and weights is {self.weights}. "
                    f"Set weights: {FORM} beside it; for other runtimes the exporter openvino writes int8."
                )
        if self.tolerance is not None:
            yield from tolerance_problems(self.tolerance)

    @property
    def _storage(self) -> Storage:
        return Storage(
            weights=self.weights,
            form=self.form,
            values=dtype_called(self.values),
            lossy=self.lossy,
            int8=self.values == "int8",
            vocabulary_int8=self.embeddings == "int8",
        )

    def views_written(self, context: PlanContext) -> list[str]:
        """Name those of its views that the model has and that can be written."""
        return plan_written(self.views, context, "onnx")

    def notes(self, context: PlanContext) -> Iterator[str]:
        """Say which views will be left out, and what is missing to run files as they are meant to be."""
        yield from plan_notes(self.views, context, "onnx")
        if self.weights == FORM and (reason := why_library_absent()):
            yield f"weights: {FORM}: files are checked as onnxruntime runs them alone, with dense weights: {reason}."

    def __call__(self, pruned: PrunedModel, folder: Path) -> Exported:
        """Write the files.

        :raises ModelError: Where the family has no such view, or a file differs from the model; no file is left then.
        """
        require_masks(pruned)
        weights = {name: pruned.model.get_parameter(name) for name in pruned.parameter_masks}
        if problems := [*self._own_problems(), *width_problems(weights, "onnx")]:
            raise ModelError(*problems)
        require_zeros(pruned, "onnx")
        settings = Settings(self._storage, self.opset, self.tolerance)
        return export_views(pruned, self.views, "onnx", lambda view: write_view(view, pruned, folder, settings))

    @staticmethod
    def densify(file: Path, target: Path) -> Path:
        """Write an ordinary ONNX file of the same model, as :func:`ecoflap.onnx.densify` does."""
        return write_dense(file, target)


def _without(matrices: Sequence[nn.Parameter], view: ViewSize) -> ViewSize:
    """Take matrices out of what a plan knows of a view."""
    pruned = [one for one in matrices if _is_pruned(one, view)]
    return replace(
        view,
        parameters=view.parameters - sum(one.numel() for one in matrices),
        prunable=view.prunable - sum(one.numel() for one in pruned),
        kept=view.kept - sum(_kept_of(one, view) for one in pruned),
    )


def _is_rounded(one: Vocabulary) -> bool:
    """Say whether a matrix is neither too small nor too large to be rounded, as far as its shape tells."""
    words, width = one.parameter.shape
    return 4 * words * width >= NARROWED_FROM and (not one.is_multiplied or can_be_multiplied(width, words))


def _shrinks(one: Layer, width: int) -> bool:
    """Say whether a matrix of which nothing is zero takes less in int8, and is not too large to be rounded.

    :param width: Bytes of a weight.
    """
    outputs, inputs = one.shape
    return _bytes_in_int8(one) + OVERHEAD < one.size * width and can_be_multiplied(inputs, outputs)


def _bytes_in_int8(one: Layer) -> int:
    outputs, inputs = one.shape
    return bytes_of_product(inputs, outputs, one.size)


def _is_pruned(one: nn.Parameter, view: ViewSize) -> bool:
    return any(layer.parameter is one for layer in view.layers)


def _kept_of(one: nn.Parameter, view: ViewSize) -> int:
    """Tell how many weights of an embedding or a head stay; of one that is pruned as large a share as of all."""
    size = one.numel()
    return size * view.kept // view.prunable if _is_pruned(one, view) else size


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"onnx": Onnx}
