"""What an export holds: ``manifest.json`` travels with its files, and has no path of the machine in it."""

import json
import zlib
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.records import Exported, StoredTensor
from ecoflap.core.disk.whole_files import sha256_of, write_whole
from ecoflap.core.recipe.part_spec import Part
from ecoflap.core.record.environment import versions

MANIFEST = "manifest.json"
SURROUNDINGS = (".json", ".jinja", ".txt", ".model", ".md")
"""Endings of what lies beside the weights: configuration, tokenizer, notes."""
PIECE, SAMPLE = 1 << 20, 32 << 20


@dataclass(frozen=True)
class Origin:
    """What tells the run that an export came from, without a path of the machine.

    :param source: The model's; of a folder its name alone.
    :param plan: SHA-256 of ``plan.json``.
    :param masks: SHA-256 of ``masks.safetensors``.
    :param deflated: What deflate leaves of the dense weights, as a share.
    """

    source: str
    plan: str
    masks: str
    deflated: float


def write_manifest(folder: Path, part: Part, model: nn.Module, written: Exported, origin: Origin | None) -> list[Path]:
    """Describe what lies in a folder.

    :return: All files, this one included.
    """
    files = {str(file.relative_to(folder)): described(file) for file in sorted(written.files)}
    stored = sum(entry["bytes"] for name, entry in files.items() if is_weights(name))
    weights = sum(tensor.nbytes for tensor in _weights(model))
    run = {"source": origin.source, "plan": origin.plan, "masks": origin.masks} if origin else None
    deflated = round(weights * origin.deflated) if origin else None
    manifest = {
        "version": 1,
        "exporter": part.use,
        "run": run,
        "files": files,
        "bytes": {"model": weights, "deflated": deflated, "dense": written.dense_bytes, "stored": stored},
        "tensors": [_told(tensor) for tensor in written.tensors],
        "checks": [asdict(check) for check in written.checks],
        "notes": list(written.notes),
        "versions": versions(),
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False))
    return [*written.files, folder / MANIFEST]


def _told(tensor: StoredTensor) -> dict[str, Any]:
    return {**asdict(tensor), "sparsity": 1 - tensor.nonzeros / max(1, prod(tensor.shape))}


def described(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def is_weights(name: str) -> bool:
    """Whether a file holds weights, and not what lies beside them."""
    return not name.endswith(SURROUNDINGS)


def deflated_share(model: nn.Module) -> float:
    """How much of the dense weights deflate (level 6, as in zip; each tensor by itself) leaves, measured on 32 MB.

    Of a larger model pieces of 1 MB are taken, evenly over all of its weights.
    """
    weights = _weights(model)
    total = sum(tensor.nbytes for tensor in weights)
    step = max(1, -(-total // SAMPLE))  # every step-th piece
    before = after = number = 0
    for tensor in weights:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        for piece in data.split(PIECE):
            if number % step == 0:
                before += len(piece)
                after += len(zlib.compress(piece.numpy().tobytes(), 6))
            number += 1
    return after / before if before else 1.0


def _weights(model: nn.Module) -> list[Tensor]:
    """Each once, whatever it is tied to."""
    return list({id(parameter): parameter for parameter in model.parameters()}.values())
