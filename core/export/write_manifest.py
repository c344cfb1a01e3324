"""Write the manifest of an export, ``manifest.json``, which travels with its files."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.records import Exported
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.export.surroundings import is_weights
from ecoflap.core.machine.environment import versions
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.record.manifest import MANIFEST, Manifest, ManifestBytes, ManifestFile, ManifestRun, ManifestTensor
from ecoflap.core.sealing.sealed import flat
from ecoflap.core.sealing.sealed_text import write_sealed_json

PIECE, SAMPLE = 1 << 17, 4 << 20
"""Bytes that are deflated at a time, and of all weights."""


@dataclass(frozen=True)
class RunOrigin:
    """Names the run that an export comes from.

    :param deflated: What deflate leaves of the dense weights, as a share.
    """

    run: ManifestRun
    deflated: float


def write_manifest(
    folder: Path,
    part: PartSpec,
    model: nn.Module,
    written: Exported,
    files: Mapping[str, ManifestFile],
    origin: RunOrigin | None,
) -> Path:
    """Describe what lies in a folder.

    :param files: What was written, each by its path in the folder.
    :return: The manifest.
    """
    manifest = Manifest(
        exporter=part.use,
        run=origin.run if origin else None,
        files=dict(files),
        bytes=_sizes(model, written, origin),
        tensors=tuple(map(ManifestTensor.of, written.tensors)),
        checks=written.checks,
        notes=written.notes,
        versions=versions([part.factory]),
    )
    write_sealed_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return folder / MANIFEST


def describe_files(folder: Path, files: Iterable[Path]) -> dict[str, ManifestFile]:
    """Give the size and hash of each file, by its path in the folder."""
    return {
        file.relative_to(folder).as_posix(): ManifestFile(bytes=file.stat().st_size, sha256=sha256_of(file))
        for file in sorted(files)
    }


def deflated_share(model: nn.Module) -> float:
    """Measure how much of the dense weights deflate leaves, as a share.

    It is deflate of level 6, as in zip, of each tensor by itself, measured on 4 MB, which takes a quarter of a second:
    of a larger model pieces of 128 KB are taken, evenly over all of its weights.
    """
    weights = _weights(model)
    total = sum(tensor.nbytes for tensor in weights)
    step = max(1, -(-total // SAMPLE))  # every step-th piece
    before = after = number = 0
    for tensor in weights:
        data = flat(tensor).view(torch.uint8)
        for piece in data.split(PIECE):
            if number % step == 0:
                before += len(piece)
                after += len(zlib.compress(piece.numpy().tobytes(), 6))
            number += 1
    return after / before if before else 1.0


def _sizes(model: nn.Module, written: Exported, origin: RunOrigin | None) -> ManifestBytes:
    weights = sum(tensor.nbytes for tensor in _weights(model))
    return ManifestBytes(
        model=weights,
        deflated=round(weights * origin.deflated) if origin else None,
        dense=written.dense_bytes,
        stored=sum(file.stat().st_size for file in written.files if is_weights(file.name)),
    )


def _weights(model: nn.Module) -> list[Tensor]:
    """Each parameter once, whatever it is tied to."""
    return list({id(parameter): parameter for parameter in model.parameters()}.values())
