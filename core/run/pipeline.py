"""A run: score → allocate → prune block by block → evaluate, before and after → save → export; each stage resumable."""

import gc
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.events import (
    Event,
    Progress,
    RunFailed,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Warned,
)
from ecoflap.core.contracts.records import Batch
from ecoflap.core.disk.whole_files import append_line, whole_folder, write_whole
from ecoflap.core.errors import EcoflapError, RunError
from ecoflap.core.export.exports import export, export_names, is_exported, manifests, origin_of, weight_bytes
from ecoflap.core.export.provenance import Provenance, attach_provenance
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.walk import blocks_on
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.model.source import open_source
from ecoflap.core.pruning.masks import attach, save_masks
from ecoflap.core.pruning.plan import Plan, Pool, make_plan
from ecoflap.core.pruning.prune_blocks import FineStep
from ecoflap.core.pruning.score_layers import score_layers
from ecoflap.core.pruning.scores import Scores
from ecoflap.core.recipe.load import find_recipe, load_recipe, parse_recipe
from ecoflap.core.recipe.schema import MAY_CHANGE, Recipe, differences
from ecoflap.core.record.evaluations import Evaluator, measures_of
from ecoflap.core.record.folder import Clock, RunFolder, open_run, read_json
from ecoflap.core.record.readback import check_saved, copy_saved, masks_as_planned
from ecoflap.core.record.report import make_report, write_report
from ecoflap.core.record.reuse import found_measures, found_scores
from ecoflap.core.record.weights import nonzeros, refuse_broken
from ecoflap.core.registry.observers import Observers
from ecoflap.core.registry.registry import Registry, load_registry
from ecoflap.core.run.data import Drawn, notes_of
from ecoflap.core.run.prepare import Prepared, prepare
from ecoflap.core.text.strict_yaml import read_yaml

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Run:
    """A finished run.

    :param model: The pruned model, in eval mode.
    :param report: What ``report.json`` holds.
    """

    folder: Path
    recipe: Recipe
    plan: Plan
    report: Mapping[str, Any]
    model: nn.Module


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    model: nn.Module | None = None,
    processor: Any = None,
    folder: Path | str | None = None,
    set_: Sequence[str] = (),
    registry: Registry | None = None,
    fresh: bool = False,
) -> Run:
    """Do what ``ecoflap run`` does.

    :param recipe: A file, the name of a shipped recipe, a mapping like a recipe's, or one that was loaded.
    :param model: A model in memory, pruned in place instead of the recipe's source.
    :param processor: Its tokenizer or processor.
    :param folder: The run folder; ``runs/NAME`` by default. A run that was cut off there goes on.
    :param set_: Overrides like ``--set``, such as ``prune.use=sparsegpt``.
    :param fresh: Begin anew, deleting what the folder holds of an earlier run.
    """
    registry = registry or load_registry()
    checked = _checked(recipe, set_, registry, model)
    target = (Path(folder) if folder is not None else Path("runs") / default_name(recipe, set_)).absolute()
    prepared = prepare(checked, registry, model, processor, own=target)
    with open_run(target, fresh=fresh) as run_folder:
        return Pipeline(prepared, run_folder, Observers(registry.observers()))()


def _checked(
    recipe: Recipe | Mapping[str, Any] | str | Path, set_: Sequence[str], registry: Registry, model: nn.Module | None
) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return parse_recipe(recipe, set_=set_, registry=registry, in_memory=model is not None)
    path = find_recipe(str(recipe))
    return load_recipe(path, set_=set_, registry=registry, in_memory=model is not None)


def default_name(recipe: Recipe | Mapping[str, Any] | str | Path, set_: Sequence[str]) -> str:
    """The recipe's file name and what was set otherwise, so that two different runs do not meet in one folder.

    What may change within a folder is left out: a run with another ``export`` goes on from the one there is.
    """
    stem = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    telling = [item for item in set_ if item.split("=")[0].split(".")[0].strip() not in MAY_CHANGE]
    return re.sub(r"[^\w.-]+", "-", "-".join([stem, *telling]))[:120].strip("-.") or "run"


class Pipeline:
    """One run in one folder."""

    def __init__(self, prepared: Prepared, folder: RunFolder, observers: Observers) -> None:
        self.prepared, self.folder = prepared, folder
        self.recipe, self.adapter = prepared.recipe, prepared.adapter
        self._observers = observers
        self._evaluators = [Evaluator(part) for part in self.recipe.evaluate]
        self._exports = dict(zip(export_names(self.recipe.export), self.recipe.export, strict=True))
        # The dense model until it is pruned in place; in a later process, the one that was read back.
        self._model: nn.Module | None = None
        self._drawn = Drawn(prepared, self._dense, self._current, self._warn)
        self._clock: Clock | None = None

    def _warn(self, message: str) -> None:
        self.emit(Warned(message))

    def emit(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.folder.record_warning(event.message)
        if isinstance(event, Progress) and self._clock is not None:
            self._clock.tick()
        for message in self._observers(event):
            self.emit(Warned(message))

    def __call__(self) -> Run:
        self._claim()
        self.emit(RunStarted(self.folder.path, tuple(self._stages())))
        for warning in self.prepared.also_changed:
            self.emit(Warned(warning))
        try:
            result = self._run()
        except BaseException as error:
            self._observers(RunFailed(str(error) or repr(error)))
            raise
        self.emit(RunFinished(self.folder.path, result.report))
        return result

    def _claim(self) -> None:
        """Refuse a folder of another recipe; ``evaluate:``, ``export:`` and ``reuse:`` may change."""
        if self.folder.recipe.is_file():
            before = read_yaml(self.folder.recipe.read_text("utf-8"), str(self.folder.recipe)).value
            changed = differences(before, self.recipe.plain())
            if changed:
                raise RunError(
                    f"{self.folder.path} was begun with another recipe: {'; '.join(changed)} (before vs now). "
                    f"Run into another folder with --folder, or begin this one anew with --fresh"
                )
        write_whole(self.folder.recipe, self.recipe.dump())

    def _stages(self) -> Iterator[str]:
        """What is still to be done, as far as can be told before the model is looked at."""
        if self.prepared.source.model is None:
            yield "load"
        if self._to_evaluate("dense"):
            yield "evaluate dense"
        if not self.folder.is_pruned:
            if not self.folder.plan.is_file():
                yield from ("score", "allocate") if self.prepared.looks_at_scores else ("allocate",)
            yield from ("prune", "save")
        if self._to_evaluate("pruned"):
            yield "evaluate pruned"
        yield from (f"export {name}" for name in self._to_export())

    def _run(self) -> Run:
        """The dense evaluation comes first: data that cannot be read are found before hours of scoring."""
        self.folder.identify(self._drawn.model_fingerprint)
        if self.folder.is_pruned:
            plan, model = self._finished()
        else:
            self.folder.identify(self._drawn.fingerprints)
            self._evaluate("dense", self._dense())
            plan = self._planned()
            model = self._pruned(plan)
        attach(model, masks_as_planned(self.folder.masks, plan))
        self._evaluate("pruned", model)
        missing = self._to_export()
        if missing:
            attach_provenance(model, self._provenance(plan))
        origin = origin_of(self.folder, self.recipe.model.source, model) if missing else None
        for name in missing:
            with self._stage(f"export {name}"):
                for note in export(self.folder.exports, name, self._exports[name], model, self.adapter, origin):
                    self._warn(f"{self._exports[name].use}: {note}")
        return Run(self.folder.path, self.recipe, plan, self._reported(plan, model), model)

    def _provenance(self, plan: Plan) -> Provenance:
        source, measures = self.recipe.model.source, measures_of(self.folder.evaluations, self._evaluators)
        return Provenance(source, self.recipe.plain(), plan.sparsity_by_tower(), plan.sparsity, measures)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.emit(StageStarted(name))
        started = perf_counter()
        self._clock = clock = Clock(name, self.folder)
        try:
            yield
        except BaseException:
            with suppress(EcoflapError):  # on a full disk this fails too, and says less
                clock.stop()
            raise
        finally:
            self._clock = None
        clock.stop()
        self.emit(StageFinished(name, perf_counter() - started))

    @property
    def _home(self) -> str:
        """Where the model is; its blocks run on the device."""
        return self.recipe.model.offload or self._device

    @cached_property
    def _device(self) -> str:
        asked, held = self.recipe.model.device, self.prepared.source.model
        if asked != "auto":
            return asked
        if held is not None:
            return str(next(held.parameters()).device)
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _current(self) -> nn.Module:
        return self._model if self._model is not None else self._dense()

    def _dense(self) -> nn.Module:
        """The source's model, which nothing has been taken from yet."""
        if self._model is None:
            self._model = self._loaded()
            refuse_broken(self._model, self.prepared.source.name)
        return self._model

    def _loaded(self) -> nn.Module:
        held = self.prepared.source.model
        if held is not None:
            return held.to(self._home).eval()
        with self._stage("load"), self._given_processor():
            return self.adapter.load(self.prepared.source, DTYPES.get(self.recipe.model.dtype), self._home)

    def _planned(self) -> Plan:
        if self.folder.plan.is_file():
            return Plan.load(read_json(self.folder.plan))
        anatomy = self._anatomy(self._dense())
        pools = self.prepared.pools_in(anatomy)
        scores = self._scored(anatomy, pools) if self.prepared.looks_at_scores else None
        granularity = self.recipe.score.granularity if scores and self.recipe.score else "layer"
        with self._stage("allocate"):
            plan = make_plan(pools, self.recipe.allocate.build(), granularity, scores)
            write_whole(self.folder.plan, json.dumps(plan.dump(), indent=1, allow_nan=False))
        return plan

    def _anatomy(self, model: nn.Module) -> Anatomy:
        return Anatomy.of(self.adapter.towers(model), self.adapter.layers, self.recipe.included)

    def _replay(self, anatomy: Anatomy, batches: Sequence[Batch], dtype: torch.dtype | None = None) -> Replay:
        device = self._device if self._device != self._home else None
        return Replay(
            self._dense(), self.adapter, batches, anatomy=anatomy, seed=self.recipe.seed, dtype=dtype, device=device
        )

    def _scored(self, anatomy: Anatomy, pools: Sequence[Pool]) -> Scores:
        score = self.recipe.score
        assert score is not None  # checked with the recipe
        self._take_over_scores()
        scorer = score.part.build()
        wanted = {layer.name for pool in pools if not isinstance(pool.sparsity, Pattern) for _, layer in pool.layers}
        layers = [pair for pair in anatomy.layers() if pair[1].name in wanted]
        keys = self.recipe.score_calibration if score.part.trait("data", True) else None
        batches = self._drawn.batches(keys, self._home, getattr(scorer, "samples", None))
        replay = self._replay(anatomy, batches, torch.float32)
        with self._stage("score"), replay:
            return score_layers(scorer, score.aggregate, replay, layers, self.folder.scores, self.emit)

    def _take_over_scores(self) -> None:
        if self.recipe.reuse and not self.folder.scores.is_file():
            found = found_scores(self.recipe, self._drawn.fingerprints, self.folder.path)
            if found is not None:
                write_whole(self.folder.scores, found.read_bytes())

    def _to_evaluate(self, stage: str) -> list[Evaluator]:
        return [one for one in self._evaluators if one.line(self.folder.evaluations, stage) is None]

    def _to_export(self) -> list[str]:
        return [name for name, part in self._exports.items() if not is_exported(self.folder.exports, name, part)]

    def _evaluate(self, stage: str, model: nn.Module) -> None:
        for evaluator in self._to_evaluate(stage):
            line = self._taken_over(evaluator) if stage == "dense" else None
            if line is not None:
                append_line(self.folder.evaluations, line)
                continue
            with self._stage(f"evaluate {stage}"), torch.no_grad(), self._on_device(model):
                built = evaluator.run(self.folder.evaluations, stage, model, self.adapter)
            for note in notes_of(built):
                self._warn(f"{evaluator.part.use}: {note}")

    def _on_device(self, model: nn.Module) -> AbstractContextManager[None]:
        """Its blocks run on the device although it is elsewhere."""
        if self._device == self._home:
            return nullcontext()
        return blocks_on(torch.device(self._device), self._anatomy(model).blocks)

    def _taken_over(self, evaluator: Evaluator) -> dict[str, Any] | None:
        if not self.recipe.reuse:
            return None
        return found_measures(self.recipe, self._drawn.model_fingerprint, self.folder.path, evaluator)

    def _pruned(self, plan: Plan) -> nn.Module:
        model = self._dense()
        replay = self._replay(self._anatomy(model), self._drawn.batches(self.recipe.calibration, self._home))
        with self._stage("prune"):
            masks = FineStep(replay, plan, self.prepared.pruners, self.folder.blocks, self.emit)()
        del replay  # and with it what it recorded
        self._drawn.clear()
        with self._stage("save"):
            save_masks(self.folder.masks, masks)
            with whole_folder(self.folder.model) as folder:
                self.adapter.save(model, folder)
                check_saved(folder, model, masks, partial(self._read, folder))
            self.folder.drop_blocks()
        return model

    def _finished(self) -> tuple[Plan, nn.Module]:
        """What earlier processes made: the dense model is read only where it is still to be evaluated."""
        self.folder.drop_blocks()
        plan = Plan.load(read_json(self.folder.plan))
        if self._to_evaluate("dense"):
            self._evaluate("dense", self._dense())
            self.folder.identify(self._drawn.fingerprints)
        held = self.prepared.source.model
        self._model = None
        gc.collect()
        with self._stage("load"):
            if held is None:
                self._model = self._read(self.folder.model)
            else:
                self._model = held.to(self._home).eval()
                copy_saved(self.folder.model, held, plan.layers, partial(self._read, self.folder.model))
        self.folder.identify(self._drawn.fingerprints)
        return plan, self._model

    def _read(self, folder: Path) -> nn.Module:
        """A model that was saved, where the run has its model."""
        with self._given_processor():
            return self.adapter.load(open_source(str(folder), Path.cwd()), None, self._home)

    @contextmanager
    def _given_processor(self) -> Iterator[None]:
        """One that the adapter has already is not exchanged for the one it reads beside a model."""
        given = self.adapter.processor
        yield
        if given is not None:
            self.adapter.processor = given

    def _reported(self, plan: Plan, model: nn.Module) -> dict[str, Any]:
        measures = measures_of(self.folder.evaluations, self._evaluators)
        sizes = {name: weight_bytes(self.folder.exports / name) for name in self._exports}
        sizes = {"model": weight_bytes(self.folder.model), **sizes}
        total, left = sum(p.numel() for p in model.parameters()), nonzeros(self._anatomy(model), plan.layers)
        report = make_report(self.folder, self.recipe, plan, total, left, measures, sizes, self._device)
        report["exports"] = manifests(self.folder.exports, self._exports)
        write_report(self.folder, report)
        return report
