"""Calibration data as the batches the whole run sees, and what tells two sets of them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from torch import Tensor, nn

from ecoflap.core.contracts.protocols import Adapter, Dataset
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError


@dataclass(frozen=True)
class Calibration:
    """Samples, drawn once; ``batches`` collates as many of them as a stage looks at."""

    samples: Sequence[Sample]
    batch_size: int
    adapter: Adapter

    @classmethod
    def draw(cls, dataset: Dataset, batch_size: int, adapter: Adapter, model: nn.Module) -> "Calibration":
        samples = tuple(dataset(adapter, model))
        if not samples:
            raise DataError("the calibration data has no samples")
        return cls(samples, batch_size, adapter)

    def batches(self, samples: int | None = None, device: str = "cpu") -> list[Batch]:
        """:param samples: Only this many, from the first; None for all."""
        used = self.samples[:samples]
        starts = range(0, len(used), self.batch_size)
        return [on_device(self.adapter.collate(used[at : at + self.batch_size]), device) for at in starts]

    @property
    def fingerprint(self) -> str:
        """A sha256 over everything a forward would see."""
        digest = sha256()
        for batch in self.batches():
            for name in sorted(batch):
                digest.update(name.encode())
                digest.update(_bytes(batch[name]))
        return digest.hexdigest()


def on_device(batch: Batch, device: str) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        return repr((value.dtype, tuple(value.shape))).encode() + value.cpu().contiguous().numpy().tobytes()
    return repr(value).encode()
