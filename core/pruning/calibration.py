"""Calibration data as the batches the whole run sees, and what tells two sets of them apart."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ecoflap.core.contracts.answers import shown
from ecoflap.core.contracts.blame import blaming, blaming_each
from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError
from ecoflap.core.forward.nested import batch_on
from ecoflap.core.guards.processor_lent import processor_lent
from ecoflap.core.guards.untouched import settings_put_back
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import CalibrationKeys
from ecoflap.core.sealing.sealed import hash_of
from ecoflap.core.seeding import seed_for, seeded

_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
"""Types of a text's tokens."""
SAMPLES_AT_A_GLANCE, TOKENS_AT_A_GLANCE = 4, 256


@dataclass(frozen=True)
class Calibration:
    """Samples, read once; :meth:`batches` collates as many of them as a stage looks at.

    It holds no model, so that one which is read anew takes the place of the one before it.
    """

    samples: Sequence[Sample]
    batch_size: int
    adapter: Adapter

    @classmethod
    def read(cls, keys: CalibrationKeys, seed: int, adapter: Adapter, model: nn.Module, note: Note) -> "Calibration":
        """Read the samples of a recipe's calibration.

        :param seed: The recipe's.
        :param model: The data need its tokenizer and its longest text.
        :param note: Takes sentences of the dataset, such as how many samples were passed over.
        :raises DataError: Where there is none.
        """
        samples = read_samples(keys.data, adapter, model, note, seed=seed)
        if not samples:
            raise DataError("the calibration data has no samples")
        return cls(samples, keys.batch_size, adapter)

    def count(self, samples: int | None = None) -> int:
        """Count the batches that :meth:`batches` gives of so many samples."""
        return -(-len(self.samples[:samples]) // self.batch_size)

    def batches(self, model: nn.Module, samples: int | None = None, device: str = "cpu") -> list[Batch]:
        """Collate the samples for a model.

        :param samples: Only this many, from the first; None for all.
        """
        used = self.samples[:samples]
        starts = range(0, len(used), self.batch_size)
        who = f"the adapter {type(self.adapter).__name__}, collating samples,"
        with blaming(who):
            made = [_named(who, self.adapter.collate(model, used[at : at + self.batch_size])) for at in starts]
            return [batch_on(batch, device) for batch in made]

    def first_batch(self, model: nn.Module, device: str) -> Batch:
        """Collate the first few samples with their windows of tokens cut, for a look at a model that costs little.

        They are several, so that some are padded. A model that makes all logits of a batch at once then makes a hundred
        megabytes of them or so.
        """
        first = self.samples[: min(self.batch_size, SAMPLES_AT_A_GLANCE)]
        longest = max(2, TOKENS_AT_A_GLANCE // len(first))
        return Calibration([_cut(sample, longest) for sample in first], len(first), self.adapter).batches(
            model, device=device
        )[0]

    def fingerprint(self, model: nn.Module) -> str:
        """Give a sha256 over everything that a model's forward would see."""
        digest = sha256()
        for batch in self.batches(model):
            for name in sorted(batch):
                digest.update(name.encode())
                digest.update(_told(name, batch[name]).encode())
        return digest.hexdigest()


def read_samples(
    data: PartSpec, adapter: Adapter, model: nn.Module, note: Note, most: int | None = None, seed: int = 0
) -> tuple[Sample, ...]:
    """Read a dataset's samples.

    :param most: How many of them, from the first; None for all.
    :param seed: Of what it draws from the global generators.
    """
    with settings_put_back(), processor_lent(adapter, data.factory), seeded(seed_for(seed, "samples")):
        return _read_samples(f"the dataset {data.use}", data, adapter, model, note, most)


def _read_samples(
    who: str, data: PartSpec, adapter: Adapter, model: nn.Module, note: Note, most: int | None
) -> tuple[Sample, ...]:
    with blaming(who):
        read = data.built(adapter, model, note)
        # By __getitem__ alone Python iterates over torch's own datasets.
        if not isinstance(read, Iterable) and not hasattr(read, "__getitem__"):
            raise DataError(f"{who} returned {shown(read)}; it yields a Sample each time")
        samples = iter(read)
    each = blaming_each(who, samples, lambda number, _: f", behind sample {number},")
    promised = data.options.samples
    limits = [count for count in (most, None if promised is None else promised + 1) if count is not None]
    found = tuple(_each_checked(who, islice(each, min(limits, default=None))))
    if promised is not None and len(found) > promised:
        raise DataError(
            f"{who} yields more samples than the {promised} that its member samples promises, by which plans count: "
            f"have it stop there, or leave samples None"
        )
    return found


def _each_checked(who: str, samples: Iterable[Any]) -> Iterator[Sample]:
    for sample in samples:
        if not isinstance(sample, Sample):
            raise DataError(f"{who} gave {shown(sample)}; a dataset yields a Sample each time")
        if sample.tokens is not None and not _are_tokens(sample.tokens):
            raise DataError(
                f"{who} gave a Sample whose tokens are {shown(sample.tokens)}; they are a tensor of one dimension, of "
                f"whole numbers, as torch.tensor([3, 17, 5]) is, and tokenizer(text, return_tensors='pt').input_ids[0]"
            )
        if wrong := _wrong_in(sample):
            raise DataError(f"{who} gave a Sample whose {wrong}")
        # Its own tokens: a dataset may fill one tensor again and again.
        tokens = None if sample.tokens is None else sample.tokens.clone()
        yield replace(sample, tokens=tokens, label=None if sample.label is None else int(sample.label))


def _wrong_in(sample: Sample) -> str | None:
    """Say which member of a sample is of another kind than the contract has; None where all are right."""
    for name in ("text", "question", "kind"):
        if not isinstance(getattr(sample, name), str | None):
            return f"{name} is {shown(getattr(sample, name))}; it is a text, or None"
    for name in ("answers", "texts"):
        given = getattr(sample, name)
        if not isinstance(given, tuple | list) or not all(isinstance(one, str) for one in given):
            return f"{name} are {shown(given)}; they are a tuple of texts, as ('yes',) is"
    is_label = isinstance(sample.label, Integral | None)  # numpy's numbers too, and what is true or false
    return None if is_label else f"label is {shown(sample.label)}; it is the number of a class, or None"


def _are_tokens(given: Any) -> bool:
    return isinstance(given, Tensor) and given.ndim == 1 and given.dtype in _WHOLE


def _named(who: str, batch: Any) -> Batch:
    """Hold an adapter to its contract: a batch is what a model's forward is called with, by name."""
    if not isinstance(batch, Mapping) or not all(isinstance(name, str) for name in batch):
        raise DataError(f"{who} gave {shown(batch)}; a batch is a mapping from names to tensors")
    return batch


def _cut(sample: Sample, longest: int) -> Sample:
    return sample if sample.tokens is None else replace(sample, tokens=sample.tokens[:longest])


def _told(name: str, value: Any) -> str:
    """Write what tells a value apart from others, whatever it is nested in."""
    if isinstance(value, Tensor):
        return hash_of(name, value)
    if isinstance(value, Mapping):
        return repr({str(key): _told(f"{name}.{key}", inside) for key, inside in value.items()})
    if isinstance(value, list | tuple):
        return repr([_told(f"{name}.{number}", inside) for number, inside in enumerate(value)])
    return hash_of(name, torch.from_numpy(value)) if isinstance(value, np.ndarray) else repr(value)
