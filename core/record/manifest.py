"""Hold the manifest of an export, which ``manifest.json`` says beside the files, and a run's report again."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from ecoflap.core.contracts.records import Check, StoredTensor
from ecoflap.core.errors import FormatError
from ecoflap.core.sealing.validation import read_validated

MANIFEST = "manifest.json"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ManifestRun(_Entry):
    """Names the run that an export came from, by what does not depend on the machine.

    :param source: The dense model's source; of a folder the name alone.
    :param plan: SHA-256 of the run's ``plan.json``.
    :param masks: SHA-256 of the run's ``masks.safetensors``.
    """

    source: str
    plan: str
    masks: str


class ManifestFile(_Entry):
    """Describes one file of an export.

    :param sha256: Of the file, in hexadecimal.
    """

    bytes: NonNegativeInt
    sha256: str


class ManifestBytes(_Entry):
    """Says how large an export is, and what it is compared with, in bytes.

    :param model: The dense weights in memory, tied ones once.
    :param deflated: What deflate leaves of those; None for an export that came from no run.
    :param dense: The same files without the encoding of pruned weights; None where the exporter does not say.
    :param stored: The files that hold weights.
    """

    model: NonNegativeInt
    deflated: NonNegativeInt | None
    dense: NonNegativeInt | None
    stored: NonNegativeInt


class ManifestTensor(_Entry):
    """Says how one weight is stored that was pruned or rounded to int8, as :class:`StoredTensor` does.

    :param sparsity: The share of its weights that is zero.
    """

    name: str
    form: str
    shape: tuple[NonNegativeInt, ...]
    nonzeros: NonNegativeInt
    dense_bytes: NonNegativeInt
    stored_bytes: NonNegativeInt
    sparsity: float

    @classmethod
    def of(cls, tensor: StoredTensor) -> "ManifestTensor":
        """Make the entry of what an exporter said of a tensor."""
        sparsity = 1 - tensor.nonzeros / max(1, prod(tensor.shape))
        return cls.model_validate({**vars(tensor), "sparsity": sparsity})


class Manifest(_Entry):
    """Says what an export holds. No path of the machine is in it.

    :param exporter: The exporter's name.
    :param run: None for a model that was exported outside a run.
    :param files: By path in the export's folder.
    :param notes: Sentences of the exporter for the user.
    :param versions: Of the libraries that wrote it.
    """

    version: Literal[1] = 1
    exporter: str
    run: ManifestRun | None
    files: dict[str, ManifestFile]
    bytes: ManifestBytes
    tensors: tuple[ManifestTensor, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]

    @property
    def sizes(self) -> list[int | None]:
        """Bytes as tables show them: of the model in memory, its weights deflated, the files dense, and as stored."""
        return [self.bytes.model, self.bytes.deflated, self.bytes.dense, self.bytes.stored]

    @property
    def forms(self) -> str:
        """Say how these weights are stored, such as ``182 bitmask, 2 dense``; empty where there are none."""
        counts = Counter(tensor.form for tensor in self.tensors)
        return ", ".join(f"{count} {form}" for form, count in counts.most_common())


def read_manifest(path: Path) -> Manifest:
    """Read a ``manifest.json``.

    :raises FormatError: Where there is none, or it is not one of this version: with the file and each place in it.
    """
    return read_validated(path, Manifest, FormatError, "Export the run again.")
