"""The model of one run: loaded when it is first needed, pruned in place, or read back from the run folder."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.forward.walk import blocks_on
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import open_source
from ecoflap.core.pruning.plan import Plan
from ecoflap.core.record.readback import copy_saved
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.record.weights import refuse_broken
from ecoflap.core.run.prepared import Prepared

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RunModel:
    """The one model that a run holds: dense until it is pruned, or the pruned one of an earlier process."""

    def __init__(self, prepared: Prepared, log: RunLog) -> None:
        self._prepared, self._log = prepared, log
        self._keys = prepared.recipe.model
        self._model: nn.Module | None = None
        self._anatomy: Anatomy | None = None

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
        return self._keys.offload or self.device

    @property
    def visits(self) -> str | None:
        """Give the device that blocks visit one at a time; None where the whole model is there."""
        return None if self.device == self.home else self.device

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
        """Load a model that was saved, to where the run has its model."""
        return self._load(open_source(str(folder), Path.cwd()), None)

    def become_pruned(self, folder: Path, plan: Plan) -> nn.Module:
        """Take the pruned model of an earlier process in the place of the dense one."""
        held = self._prepared.source.model
        self._model = self._anatomy = None
        gc.collect()
        with self._log.stage("load"):
            if held is None:
                self._model = self.read(folder)
            else:
                self._model = held.to(self.home).eval()
                copy_saved(folder, held, plan.layers, partial(self.read, folder))
        return self._model

    def on_device(self) -> AbstractContextManager[None]:
        """Run the model's blocks on the device although they are elsewhere."""
        if self.visits is None:
            return nullcontext()
        return blocks_on(torch.device(self.visits), self.anatomy.blocks)

    def _from_source(self) -> nn.Module:
        source = self._prepared.source
        if source.model is not None:
            return source.model.to(self.home).eval()
        with self._log.stage("load"):
            return self._load(source, DTYPES.get(self._keys.dtype))

    def _load(self, source: Source, dtype: torch.dtype | None) -> nn.Module:
        adapter = self._prepared.adapter
        with self._given_processor(), blaming(f"the adapter {type(adapter).__name__}, loading {source.name},"):
            return adapter.load(source, dtype, self.home)

    @contextmanager
    def _given_processor(self) -> Iterator[None]:
        """Keep a processor that the adapter was given, in place of the one that it reads beside a model."""
        adapter = self._prepared.adapter
        given = adapter.processor
        yield
        if given is not None:
            adapter.processor = given
