"""The model of one run: loaded when it is first needed, pruned in place, or read back from the run folder."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from ecoflap.core.contracts.adapter_answers import loaded_by
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.kept_processor import processor_kept
from ecoflap.core.dtypes import dtype_called
from ecoflap.core.errors import RankError, RunError
from ecoflap.core.forward.placement import Placement, model_held
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.hashed_files import HashedFiles
from ecoflap.core.model.mapped_weights import MappedWeights, mapped_beside
from ecoflap.core.model.source import files_hashed, fingerprint, open_source
from ecoflap.core.planning.plan import Plan
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.pruning.finished_weights import FinishedWeights
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import ARITHMETIC, held_in_by
from ecoflap.core.record.readback import copy_saved
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.run.spare_memory import spare_memory
from ecoflap.core.run.weights import refuse_broken


class RunModel:
    """The one model that a run holds: dense until it is pruned, or the pruned one of an earlier process.

    :param folder: The run's. For a while files lie there with weights that cannot be mapped as the model has them.
    :param held_in: The type that weights are held in while they are used, where that is wider than their own.
    """

    def __init__(self, prepared: Prepared, log: RunLog, folder: Path, held_in: torch.dtype | None) -> None:
        self._prepared, self._log, self._folder, self.held_in = prepared, log, folder, held_in
        self._keys = prepared.recipe.model
        self._model: nn.Module | None = None
        self._anatomy: Anatomy | None = None
        self._mapped: MappedWeights | None = None
        self._hashed = HashedFiles(())  # until the fingerprint is asked for

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Give what tells the source apart from others; from then on it shows whether its files are still these."""
        files = files_hashed(self._prepared.source)
        self._hashed = hashed = HashedFiles(files.values())
        found = fingerprint(self._prepared.source, self.get)
        hashed.know({file: found[name] for name, file in files.items()})
        return found

    @cached_property
    def device(self) -> str:
        """Say where the blocks run."""
        held = self._prepared.source.model
        if self._keys.device != "auto":
            return self._keys.device
        if held is not None:
            return str(next(held.parameters()).device)
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def home(self) -> str:
        """Say where the model is: on the device, unless the recipe offloads it."""
        return "cpu" if self._keys.offload else self.device

    @property
    def visits(self) -> str | None:
        """Give the device that blocks visit one at a time; None where the whole model is there."""
        return None if self.device == self.home else self.device

    @property
    def stays_on_disk(self) -> bool:
        """Say whether weights stay in files, but for the block that is being pruned."""
        return self._keys.offload == "disk"

    @property
    def computed_in(self) -> torch.dtype:
        """Give the type of the model's products, or of most of them; where it is its own, its weights tell."""
        return self.held_in or self.anatomy.dtype

    def get(self) -> nn.Module:
        """Give the model that there is; the source's, loaded and checked, where there is none yet."""
        if self._model is None:
            self._model = self._from_source()
            refuse_broken(self._model, self._prepared.source.name)
        return self._model

    @property
    def anatomy(self) -> Anatomy:
        """Give the anatomy of the model that there is, with the matrices outside blocks that the recipe includes."""
        if self._anatomy is None:
            adapter = self._prepared.adapter
            self._anatomy = Anatomy.of(adapter.towers(self.get()), adapter.layers, self._prepared.recipe.included)
        return self._anatomy

    def read(self, folder: Path) -> nn.Module:
        """Load a model that was saved, into main memory: a GPU may have no room for another one."""
        return self._read(folder, "cpu")[0]

    def finished_weights(self, folder: Path) -> FinishedWeights | None:
        """Give what takes finished blocks out of memory; None where the model is in memory.

        :param folder: Where finished blocks are kept.
        """
        if not self.stays_on_disk:
            return None
        model = self.get()
        assert self._mapped is not None  # it was loaded by this very process
        return FinishedWeights(model, self._mapped, folder)

    def refuse_changed(self, ranks: Ranks) -> None:
        """Refuse to record what was found where files that weights are mapped from have changed meanwhile.

        :param ranks: The processes that have found it; none goes on before all have looked at the files that they see.
        """
        if self._mapped is not None:
            self._mapped.refuse_changed()
            ranks.gather(None)

    @contextmanager
    def blamed_where_changed(self) -> Iterator[None]:
        """Tell of a file that weights are mapped from and that has changed, where what went wrong may come of that.

        Other processes may have gone wrong before this one, so that none waits for them.

        :raises RunError: In the place of what was raised.
        """
        try:
            yield
        except (RankError, RunError):  # of other processes, or of files and folders already
            raise
        except Exception as error:
            if self._mapped is not None:
                try:
                    self._mapped.refuse_changed()
                except RunError as changed:
                    raise changed from error
            raise

    def forget_blocks(self, folder: Path) -> None:
        """Know that files of finished blocks in a run folder may go, because the saved model has their weights."""
        if self._mapped is not None:
            self._mapped.forget(folder)

    def leave_source(self, folder: Path) -> nn.Module:
        """Hold weights that stay in files where the saved model has them, and read the source's files no more."""
        if self._mapped is not None:
            self._let_go()
            self._model, self._mapped = self._read(folder)
        return self.get()

    def become_pruned(self, folder: Path, plan: Plan) -> nn.Module:
        """Take the pruned model of an earlier process in the place of the dense one."""
        held = self._prepared.source.model
        self._let_go()
        with self._log.stage("load"):
            if held is None:
                self._model, self._mapped = self._read(folder)
            else:
                self._model = held.to(self.home).eval()
                copy_saved(folder, held, plan.layers, partial(self.read, folder))
        return self._model

    def _let_go(self) -> None:
        """Free the model that there is, before another takes its place."""
        self._model = self._anatomy = self._mapped = None
        gc.collect()

    def running(self) -> AbstractContextManager[None]:
        """Let the model run as the run computes: in the type that it says, its blocks on the device."""
        placement = Placement(self.held_in, None if self.visits is None else torch.device(self.visits))
        if placement == Placement():
            return nullcontext()
        return model_held(self.get(), self.anatomy, placement, spare_memory(self._prepared))

    def _from_source(self) -> nn.Module:
        source = self._prepared.source
        if source.model is not None:
            return source.model.to(self.home).eval()
        with self._log.stage("load"):
            model, self._mapped = self._load(source, dtype_called(self._keys.dtype), hashed=self._hashed)
            if changed := self._hashed.changed():
                raise RunError(
                    f"{', '.join(map(str, changed))} changed while the model was hashed and loaded, so that the run "
                    f"would be recorded as one of another model. Put back what was there and run again, or begin anew "
                    f"with --fresh"
                )
            return model

    def _read(self, folder: Path, home: str | None = None) -> tuple[nn.Module, MappedWeights | None]:
        return self._load(open_source(str(folder), Path.cwd()), None, home)

    def _load(
        self, source: Source, dtype: torch.dtype | None, home: str | None = None, hashed: HashedFiles | None = None
    ) -> tuple[nn.Module, MappedWeights | None]:
        """Load a model, and say where its weights are, if they stay in their files.

        A processor that the adapter was given stays, in place of the one beside the model. What is mapped from the
        scratch folder needs no name there any more, and is gone from the disk with its mapping.
        """
        adapter = self._prepared.adapter
        with (
            nullcontext() if adapter.processor is None else processor_kept(adapter),
            blaming(f"the adapter {type(adapter).__name__}, loading {source.name},"),
            mapped_beside(self._folder, hashed) if self.stays_on_disk else nullcontext() as mapped,
        ):
            return loaded_by(adapter, replace(source, mapped=mapped), dtype, home or self.home), mapped


def held_in(prepared: Prepared, folder: RunFolder) -> torch.dtype | None:
    """Give the type that a run's weights are held in while they are used; None for their own.

    A run that goes on computes as it was begun, also on a machine that would do otherwise.
    """
    begun = folder.read_fingerprints()
    return held_in_by(begun) if ARITHMETIC in begun else prepared.held_in
