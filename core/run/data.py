"""What a run reads: its calibration data, read once each, and what tells model and data apart from others."""

import json
from contextlib import nullcontext
from functools import cached_property
from typing import Any

from ecoflap.core.contracts.records import Batch
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.guards.left_as_given import left_as_given
from ecoflap.core.machine.part_code import is_ours
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.pruning.calibration import Calibration
from ecoflap.core.recipe.schema import CalibrationKeys
from ecoflap.core.record.evaluations import digests
from ecoflap.core.record.identity import ARITHMETIC, CALIBRATION_DATA, SCORING_DATA
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.run.plan_trials import held_out_of
from ecoflap.core.run.run_model import RunModel

_CURE = "A dataset looks at the model for its tokenizer, or runs it: have it copy what it changes"


class RunData:
    """The calibration data of one run.

    :param model: Its tokenizer counts lengths; its weights, where they come from no file, are its fingerprint.
    """

    def __init__(self, prepared: Prepared, model: RunModel, log: RunLog) -> None:
        self._prepared, self._model, self._log = prepared, model, log
        self._read: dict[str, Calibration] = {}

    @cached_property
    def model_fingerprint(self) -> dict[str, Any]:
        """Give what tells the model apart from others, the files that its adapter is given, and what it computes in."""
        adapter = self._prepared.recipe.model.adapter
        files = {"adapter": digests(adapter)} if adapter and digests(adapter) else {}
        held = self._model.held_in
        # The model's own type is not named, for it may show only when weights are read: its files are in here, too.
        computed_in = "model" if held is None else dtype_name(held)
        arithmetic = {ARITHMETIC: computed_in} if self._prepared.may_be_narrow else {}
        return {"model": self._model.fingerprint, **files, **arithmetic}

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Give what tells the model and the data apart from others; the data need the model's tokenizer."""
        recipe, found = self._prepared.recipe, dict(self.model_fingerprint)
        own = recipe.score.calibration if recipe.score else None
        for what, keys in ((CALIBRATION_DATA, recipe.calibration), (SCORING_DATA, own)):
            if keys is not None:
                found[what] = self._calibration(keys).fingerprint(self._model.get())
        pruned_by: dict[str, str] = {}
        for pruner in self._prepared.pruners.values():
            pruned_by |= digests(pruner)
        return {**found, "file that it is pruned by": pruned_by} if pruned_by else found

    def batches(self, keys: CalibrationKeys | None, samples: int | None = None) -> list[Batch]:
        """Give the batches of a calibration, where the model is.

        :param samples: How many samples a scorer looks at; None for all.
        """
        if keys is None:
            return []
        calibration = self._calibration(keys)
        there = len(calibration.samples)
        if samples is not None and samples > there:
            self._log.note(f"score: samples is {samples} and the calibration data has {there}; all of those were used")
        return calibration.batches(self._model.get(), samples, self._model.home)

    def batch_counts(self, *, is_planned: bool) -> dict[str, int]:
        """Count the batches that are shared, by what they are for.

        :param is_planned: Whether there is a plan, so that nothing is scored or tried any more.
        """
        recipe, counts = self._prepared.recipe, dict[str, int]()
        if recipe.calibration is not None:
            count = self._calibration(recipe.calibration).count()
            options = recipe.allocate.options
            held_out = held_out_of(count, options.held_out) if options.candidates and not is_planned else 0
            counts["calibration data"] = count - held_out
        keys = None if is_planned else recipe.score_calibration
        if keys is not None and self._prepared.looks_at_scores and recipe.score is not None:
            options = recipe.score.scorer.options
            if options.data and options.shares:
                counts["data to score by"] = self._calibration(keys).count(options.samples)
        return counts

    def first_batch(self, keys: CalibrationKeys) -> Batch:
        """Give the first few samples of a calibration where the model is, their windows of tokens cut short."""
        return self._calibration(keys).first_batch(self._model.get(), self._model.home)

    def clear(self) -> None:
        """Forget the samples, which have served."""
        self._read.clear()

    def _calibration(self, keys: CalibrationKeys) -> Calibration:
        name, seed = json.dumps(keys.plain()), self._prepared.recipe.seed
        if name not in self._read:
            model, note, who = self._model.get(), self._log.note_of(keys.data.use), f"the dataset {keys.data.use}"
            on_disk = self._model.stays_on_disk
            # Ours read a text or a picture; to look at all weights for that takes seconds of a large model.
            left = left_as_given(who, model, _CURE, is_on_disk=on_disk, runs_first=True)
            with nullcontext() if is_ours(keys.data.factory) else left:
                self._read[name] = Calibration.read(keys, seed, self._prepared.adapter, model, note)
        return self._read[name]
