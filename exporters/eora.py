"""The exporter ``eora`` writes what a matrix of low rank gives back of what pruning took, as a LoRA adapter of PEFT's.

    W x ≈ Ŵ x + B A x,    B = U_r,    A = U_rᵀ (W − Ŵ)        U_r: the r first left singular vectors of (W − Ŵ) G^½

Ŵ is the pruned weight, W the dense one, and G = Σ x xᵀ over what the layer is fed in the pruned model. No matrix of
rank r leaves less of the squared error of the outputs, Σ ‖(W − Ŵ − B A) x‖². Liu et al., EoRA: Fine-tuning-free
Compensation for Compressed LLM with Eigenspace Low-Rank Approximation, 2024 (arXiv 2410.21271), reach the same matrix
as B = U_r Σ_r, A = V_rᵀ Λ^{-½} Qᵀ with G = Q Λ Qᵀ; this form needs no inverse of G, which few tokens leave singular.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.kept_processor import processor_kept
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Exporter, PrunedModel
from ecoflap.core.contracts.records import Check, Exported, Meanwhile, StoredTensor, ViewSize
from ecoflap.core.errors import FormatError, ModelError, refuse_below_one
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.model.mapped_weights import MappedWeights, mapped_beside
from ecoflap.core.model.source import fingerprint, open_source
from ecoflap.core.recipe.read_recipe import MEMORY
from ecoflap.core.statistics.few_tokens import few_tokens, warning_of_few
from ecoflap.core.statistics.gram import Gram
from ecoflap.exporters.shared.pruned_weights import require_masks, some
from ecoflap.exporters.shared.seen_inputs import seen_inputs

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names that PEFT looks for."""
_SOLVING = 6  # numbers in float64 for each of inputs · (inputs + outputs), measured
_NO_DATA = (
    "eora needs to know what layers are fed, and there is no calibration data. Add calibration: to the recipe, and "
    "prune by it in a new folder where this one is finished"
)
_NO_LINEAR = "it corrects a torch.nn.Linear, and none of the matrices that are pruned is one. Leave it out of export"
_NO_DENSE = "eora needs the dense weights once more, and a model in memory was pruned in place. Give its folder instead"


@dataclass(frozen=True)
class Eora:
    """Writes a LoRA adapter to be put on the pruned model, whose files it leaves as they are.

    ``peft.PeftModel.from_pretrained(model, folder)`` puts it on what the ``hugging_face`` exporter wrote, or on
    ``ecoflap.load_model(folder, weights="packed")``. It is to be kept apart: merged, it would fill the zeros in.

    Matrices that are no ``torch.nn.Linear``, such as those of experts that lie in one parameter, and those that no
    token reached are left out, and named. The dense model is read once more, and has to be the one that was pruned.

    :param rank: r. Each layer takes rank · (inputs + outputs) numbers.
    """

    rank: int = 128

    def __post_init__(self) -> None:
        refuse_below_one("rank", self.rank)

    def predicted_bytes(self, view: ViewSize) -> int:
        """Count A and B of each layer."""
        return sum(self.rank * sum(layer.shape) * view.width for layer in view.layers if _is_linear(layer))

    def meanwhile(self, view: ViewSize) -> Meanwhile:
        """Tell what is held beside the pruned model: the dense one, the adapter, and what solving the largest takes.

        Weights that stay in files are not held, but those of the dense model that its library puts together lie on the
        disk meanwhile. Inputs that calibration records, and Gram matrices of a block, come on top.
        """
        largest = max((layer.shape[1] * sum(layer.shape) for layer in view.layers if _is_linear(layer)), default=0)
        dense = 0 if view.offloaded else view.parameters * view.width
        return Meanwhile(dense + self.predicted_bytes(view) + 8 * _SOLVING * largest, view.put_together)

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what of the recipe and of the model keeps it from correcting anything."""
        if context.recipe.calibration is None:
            yield _NO_DATA
        if not any(parameter.is_meta for parameter in context.model.parameters()):
            yield _NO_DENSE
        asked = context.recipe.included
        kept = {name for name, own in context.recipe.towers.items() if own == "keep"}
        kept |= {one.name for one in context.anatomy.towers if not one.prunable and one.name not in asked}
        pruned = [layer for block, layer in context.anatomy.layers() if block.tower not in kept]
        linear = [layer for layer in pruned if _is_linear(layer)]
        if pruned and not linear:
            yield f"eora: {_NO_LINEAR}."
        yield from self._too_small(linear)

    def _too_small(self, layers: list[Layer]) -> Iterator[str]:
        most = {layer.name: (layer.size - 1) // sum(layer.shape) for layer in layers}
        if small := [name for name, rank in most.items() if self.rank > rank]:
            yield (
                f"eora: a correction of rank {self.rank} takes no fewer numbers than {some(small)}: "
                f"rank may be {min(most.values())} at most"
            )

    def __call__(self, pruned: PrunedModel, folder: Path) -> Exported:
        """Write the adapter.

        :raises ModelError: Where there is no calibration data, or the dense model is gone or another.
        """
        require_masks(pruned)
        if pruned.calibration is None:
            raise ModelError(_NO_DATA)
        dense, mapped = _dense(pruned, folder)
        corrections = dict(self._corrections(pruned, dense))
        if mapped is not None:
            mapped.refuse_changed()
        if not corrections:
            raise ModelError("eora: none of the pruned matrices is a torch.nn.Linear that a token reached.")
        _write(folder, self.rank, corrections)
        left_out = [name for name in pruned.masks if name not in corrections]
        return _exported(folder, corrections, left_out)

    def _corrections(self, pruned: PrunedModel, dense: nn.Module) -> Iterator[tuple[str, "Correction"]]:
        assert pruned.calibration is not None  # the call has seen to it
        for layer, gram in seen_inputs(pruned, pruned.calibration(), Gram):
            if _is_linear(layer):
                problems = [*self._too_small([layer])]
                if problems:
                    raise ModelError(*problems)
                lost = dense.get_parameter(layer.name).detach().double() - layer.weight.detach().double().cpu()
                found = correction(lost, gram.matrix.double().cpu(), self.rank)
                yield layer.name, replace(found.to(layer.weight.dtype), few=few_tokens(gram))


@dataclass(frozen=True)
class Correction:
    """Is the correction of one layer, W ≈ Ŵ + B A.

    :param left: Of the squared error of the outputs, the share that it leaves.
    :param few: How many tokens it is of, where they are fewer than the layer's inputs.
    """

    b: Float[Tensor, "out rank"]
    a: Float[Tensor, "rank in"]
    left: float
    few: str | None = None

    def to(self, dtype: torch.dtype) -> "Correction":
        """Give it in another type."""
        return replace(self, b=self.b.to(dtype).contiguous(), a=self.a.to(dtype).contiguous())


def correction(lost: Float64[Tensor, "out in"], gram: Float64[Tensor, "in in"], rank: int) -> Correction:
    """Compute the matrix of a rank that leaves least of the squared error of a layer's outputs.

    :param lost: W − Ŵ.
    :param gram: Σ x xᵀ over the layer's inputs.
    """
    scales, vectors = torch.linalg.eigh(gram)
    error = lost @ (vectors * scales.clamp(min=0).sqrt())
    outputs, sizes, _ = torch.linalg.svd(error, full_matrices=False)
    squares, b = sizes.square(), outputs[:, :rank]
    total = float(squares.sum())
    return Correction(b, b.T @ lost, float(squares[rank:].sum()) / total if total else 0.0)


def _is_linear(layer: Layer) -> bool:
    return isinstance(layer.module, nn.Linear) and layer.attribute == "weight" and layer.part is None


def _dense(pruned: PrunedModel, folder: Path) -> tuple[nn.Module, MappedWeights | None]:
    """Read the dense model once more; where weights of the pruned one stay in files, so do its own.

    :param folder: Where files lie meanwhile with weights that cannot be mapped as the model has them.
    """
    known, adapter = pruned.provenance, pruned.adapter
    if known is None:
        raise ModelError("eora needs the run that pruned the model, which knows where its dense weights are.")
    if known.source == MEMORY:
        raise ModelError(_NO_DENSE)
    source = open_source(known.source, Path.cwd())
    with mapped_beside(folder) if pruned.offloaded else nullcontext() as mapped:
        load = cache(partial(_loaded, adapter, replace(source, mapped=mapped)))  # a fingerprint may have to read it too
        found, before = fingerprint(source, load), known.fingerprint
        differs = sorted(name for name in {*found, *before} if found.get(name) != before.get(name))
        if differs:
            raise ModelError(
                f"eora: {known.source} is not the model any more that was pruned: {some(differs)} differs. Put it back."
            )
        return load(), mapped


def _loaded(adapter: Adapter, source: Any) -> nn.Module:
    """Load a model, and leave the adapter the processor that it has."""
    with processor_kept(adapter):
        return adapter.load(source, None, "cpu")


def _write(folder: Path, rank: int, corrections: Mapping[str, Correction]) -> None:
    modules = {name: name.removesuffix(".weight") for name in corrections}
    tensors = {}
    for name, one in corrections.items():
        tensors[f"base_model.model.{modules[name]}.lora_A.weight"] = one.a
        tensors[f"base_model.model.{modules[name]}.lora_B.weight"] = one.b
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # their quotient is what B A is multiplied by
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(modules.values()),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    found = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if name not in found or not torch.equal(found[name], tensor):
            raise FormatError(f"{folder / WEIGHTS}: {name} reads back other than it was written")


def _exported(folder: Path, corrections: Mapping[str, Correction], left_out: list[str]) -> Exported:
    """Describe what was written."""
    left = sum(one.left for one in corrections.values()) / len(corrections)
    notes = [f"of the squared error of a layer's outputs on the calibration data {left:.0%} is left, on average"]
    few = {name: one.few for name, one in corrections.items() if one.few}
    if few:
        notes.append(warning_of_few(few))
    if left_out:
        notes.append(f"{some(left_out)}: no torch.nn.Linear that a token reached, and left as pruned")
    tensors = tuple(_stored(name, one) for name, one in corrections.items())
    check = Check(WEIGHTS, "adapter", "safetensors", 0.0, 0.0)
    return Exported((folder / CONFIG, folder / WEIGHTS), tensors, (check,), None, tuple(notes))


def _stored(name: str, one: Correction) -> StoredTensor:
    size = one.a.nbytes + one.b.nbytes
    shape = (one.b.shape[0], one.a.shape[1])
    return StoredTensor(name, "low rank", shape, one.a.numel() + one.b.numel(), size, size)


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"eora": Eora}
