"""Predict the disk that a run takes: what it leaves, and what is there until it is done."""

from collections.abc import Iterator
from dataclasses import dataclass

from ecoflap.core.needs.exports import exported_bytes, meanwhile_of
from ecoflap.core.needs.memory import Places
from ecoflap.core.needs.sizes import (
    bytes_in_block_files,
    bytes_in_scratch,
    bytes_inside_blocks,
    bytes_left_by_refiners,
    bytes_of_blocks,
    bytes_of_gradients,
    bytes_of_record,
    bytes_of_scorer,
    bytes_of_steps,
    bytes_of_weight,
    bytes_of_weight_scores,
    bytes_put_together,
    bytes_remembered,
    bytes_trained_in_files,
    parameters_of,
)
from ecoflap.core.preparing.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class DiskNeeds:
    """Is what a run writes, in bytes.

    :param files: What it leaves, by name.
    :param blocks: Finished blocks of all rounds, their masks and the weights that more than these changes. Where the
        model stays in files their masks alone, and all weights of the round before, and of blocks as they were before
        the whole model was refined.
    :param beside: Where the model stays in files, weights that these do not have as they are computed with, as far as
        they are there when the last blocks are finished.
    :param trying: What is there while candidates are tried, of a model that stays in files and before it is pruned.
    :param gradients: Those of the loss that pruners or the scorer ask for.
    :param spilled: What blocks gave, where that is kept on the disk.
    :param steps: What a refiner of the whole model writes every two minutes; one that takes less writes nothing.
    :param left: What a refiner of the whole model leaves to the next one.
    :param trained: What refiners of the whole model hold of it, where the model stays in files.
    :param put_together: Weights that the library makes of several in the model's files, where the model stays in files:
        beside these they are there as they are computed with, and once more while the saved model is read back.
    :param exporting: What the exporter takes that takes most, later than all of these.
    """

    files: tuple[tuple[str, int], ...]
    blocks: int
    beside: int
    trying: int
    gradients: int
    spilled: int
    steps: int
    left: int
    trained: int
    put_together: int
    exporting: int

    @property
    def meanwhile(self) -> int:
        """Give what is there at the most until the run is done, beside what it leaves and without :attr:`steps`."""
        saving = self.blocks + self.beside + 2 * self.put_together
        return max(self._pruning, saving, self.trying, self.put_together + self.exporting)

    @property
    def longer(self) -> int:
        """Give how much more it is where a refiner of the whole model takes long enough for its steps to be written."""
        return max(0, self._pruning + self.steps - self.meanwhile)

    @property
    def _pruning(self) -> int:
        return self.blocks + self.beside + self.gradients + self.spilled + self.left + self.trained

    @property
    def peak(self) -> int:
        """Give what is there at the most, with what the run leaves and without :attr:`longer`."""
        return sum(size for _, size in self.files) + self.meanwhile


def disk_needs(prepared: Prepared, places: Places) -> DiskNeeds:
    """Add up what a run leaves on disk, and what it deletes again, with the model and the record in these places."""
    offloaded = places.offloaded
    blocks, beside, trying = _offloaded(prepared) if offloaded else (bytes_in_block_files(prepared), 0, 0)
    gradients, spilled = _spilled(prepared) if places.spilled else (bytes_of_gradients(prepared), 0)
    exporting = meanwhile_of(prepared, offloaded).values()
    return DiskNeeds(
        files=tuple(_files(prepared)),
        blocks=blocks,
        beside=beside,
        trying=trying + gradients + spilled if trying else 0,
        gradients=gradients,
        spilled=spilled,
        steps=bytes_of_steps(prepared),
        left=bytes_left_by_refiners(prepared),
        trained=bytes_trained_in_files(prepared) if offloaded else 0,
        put_together=bytes_put_together(prepared) if offloaded else 0,
        exporting=max((one.disk for one in exporting), default=0),
    )


def _files(prepared: Prepared) -> Iterator[tuple[str, int]]:
    """Yield what a run leaves, by its name in the run folder."""
    masks, rounds = prepared.size // 8, prepared.recipe.round_count
    yield "model/", parameters_of(prepared) * bytes_of_weight(prepared)
    yield "masks", masks
    if rounds > 1:
        yield "rounds/", (rounds - 1) * masks
    kept = ("dense/ at most", sum(bytes_remembered(prepared))), ("scores/", bytes_of_weight_scores(prepared))
    yield from ((name, size) for name, size in kept if size)
    yield from ((part.use, exported_bytes(part, prepared)) for part in prepared.recipe.export)


def _spilled(prepared: Prepared) -> tuple[int, int]:
    """Count bytes of gradients in files at the most, and of all else that waits there for its block.

    What a refined block is held against is as large as what is recorded, for each target. A block that was given what
    lay on another device has a copy of that beside the record while it is refined.
    """
    gradients = max(bytes_of_gradients(prepared), bytes_of_scorer(prepared)[1])  # the scorer's are gone before pruners'
    copied = 1 if prepared.targets_asked and not prepared.is_on_cpu else 0
    recorded = bytes_of_record(prepared) * (1 + len(prepared.targets_asked) + copied)
    return gradients, recorded + bytes_inside_blocks(prepared)


def _offloaded(prepared: Prepared) -> tuple[int, int, int]:
    """Give what is there beside ``model/`` of blocks, in the scratch folder, and while candidates are tried.

    Finished blocks of the last round, or of a trial before it, are as large as they are in ``model/``, of which they
    become a part; where the whole model is refined, what refiners have made of them does. What lies in the scratch
    folder goes block by block with the first round, unless somebody looks at it later. So with rounds no trial takes
    more than the last round does.
    """
    rounds, blocks, scratch = prepared.recipe.round_count, bytes_of_blocks(prepared), bytes_in_scratch(prepared)
    masks = prepared.size // 8 * min(rounds, 2)
    outside = parameters_of(prepared) * bytes_of_weight(prepared) - blocks
    beside = scratch if prepared.holds_dense_weights else max(0, scratch - blocks)
    trying = masks + max(0, scratch - outside) if prepared.recipe.allocate.options.candidates else 0
    before = (1 if rounds > 1 else 0) + (1 if prepared.model_refiners else 0)
    return masks + before * blocks, beside, trying
