"""A run: score → allocate → prune block by block → evaluate, before and after → save → export; each stage resumable."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ecoflap.core.anatomy import Anatomy, Block, Layer
from ecoflap.core.calibration import Calibration
from ecoflap.core.coarse import score_layers
from ecoflap.core.environment import peak_memory
from ecoflap.core.errors import RunError
from ecoflap.core.events import Event, RunFailed, RunFinished, RunStarted, StageFinished, StageStarted, Warned
from ecoflap.core.files import append_line, sha256_of, whole_folder, write_whole
from ecoflap.core.fine import FineStep
from ecoflap.core.masks import PackedMasks, attach, load_masks, save_masks
from ecoflap.core.observers import Observers
from ecoflap.core.part import Part
from ecoflap.core.parts import Batch, Measure
from ecoflap.core.plan import Plan, make_plan
from ecoflap.core.preparation import Prepared, prepare
from ecoflap.core.recipe import find_recipe, load_recipe, parse_recipe
from ecoflap.core.recipe_model import Calibration as CalibrationKeys
from ecoflap.core.recipe_model import Recipe, differences
from ecoflap.core.registry import Registry, load_registry
from ecoflap.core.replay import Replay
from ecoflap.core.report import make_report, write_report
from ecoflap.core.reuse import evaluation_in, found_measures, found_scores
from ecoflap.core.run import RunFolder, open_run, read_json
from ecoflap.core.scores import Scores
from ecoflap.core.source import fingerprint, open_source
from ecoflap.core.strict_yaml import read_yaml

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
    prepared = prepare(checked, registry, model, processor)
    target = Path(folder) if folder is not None else Path("runs") / default_name(recipe, set_)
    with open_run(target.absolute(), fresh=fresh) as run_folder:
        return Pipeline(prepared, registry, run_folder, Observers(registry.observers()))()


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
    """The recipe's file name and what was set otherwise, so that two different runs do not meet in one folder."""
    stem = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    parts = [stem, *(item.replace("=", "-").replace("/", "-") for item in set_ if not item.startswith("reuse"))]
    return "-".join(parts)[:120]


class Pipeline:
    """One run in one folder."""

    def __init__(
        self, prepared: Prepared, registry: Registry, folder: RunFolder, emit: Callable[[Event], None]
    ) -> None:
        self.prepared, self.registry, self.folder = prepared, registry, folder
        self.recipe, self.adapter = prepared.recipe, prepared.adapter
        self._emit = emit
        self._dense: nn.Module | None = prepared.source.model
        self._drawn: dict[str, Calibration] = {}
        self._warnings: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._warnings.append(event.message)
        self._emit(event)

    def __call__(self) -> Run:
        self._claim()
        self.emit(RunStarted(self.folder.path, ("load", "score", "allocate", "prune", "evaluate", "save", "export")))
        try:
            result = self._run()
        except BaseException as error:
            self.emit(RunFailed(str(error) or repr(error)))
            raise
        self.emit(RunFinished(self.folder.path, result.report))
        return result

    def _run(self) -> Run:
        if self.folder.is_pruned:
            self.folder.identify(self._model_fingerprint)
            plan = Plan.load(read_json(self.folder.plan))
            self._evaluate("dense")
            model = self._reloaded()
        else:
            self._identify()
            plan = self._planned()
            self._evaluate("dense")
            model = self._pruned(plan)
        attach(model, load_masks(self.folder.masks))
        self._evaluate("pruned", model)
        self._export(model)
        report = self._reported(plan, model)
        return Run(self.folder.path, self.recipe, plan, report, model)

    def _claim(self) -> None:
        """Refuse a folder of another recipe; ``evaluate:``, ``export:`` and ``reuse:`` may change."""
        if self.folder.recipe.is_file():
            before = read_yaml(self.folder.recipe.read_text("utf-8"), str(self.folder.recipe)).value
            changed = differences(before, self.recipe.plain())
            if changed:
                raise RunError(
                    f"{self.folder.path} was begun with another recipe: {'; '.join(changed)}. "
                    f"Run into another folder with --folder, or begin this one anew with --fresh"
                )
        write_whole(self.folder.recipe, self.recipe.dump())

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.emit(StageStarted(name))
        started = perf_counter()
        yield
        seconds = perf_counter() - started
        self.folder.record_stage(name, seconds, peak_memory())
        self.emit(StageFinished(name, seconds))

    @cached_property
    def _device(self) -> str:
        asked = self.recipe.model.device
        return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked

    def _dense_model(self) -> nn.Module:
        if self._dense is None:
            with self._stage("load"):
                dtype = DTYPES.get(self.recipe.model.dtype)
                self._dense = self.adapter.load(self.prepared.source, dtype, self._device)
        return self._dense

    @cached_property
    def _model_fingerprint(self) -> dict[str, Any]:
        return {"model": fingerprint(self.prepared.source)}

    @cached_property
    def _fingerprints(self) -> dict[str, Any]:
        """Of the model and of the data; the latter need its tokenizer, so they come after it is loaded."""
        found = dict(self._model_fingerprint)
        for what, keys in (("calibration data", self.recipe.calibration), ("scoring data", self._scoring_keys)):
            if keys is not None:
                found[what] = self._calibration(keys).fingerprint
        return found

    @property
    def _scoring_keys(self) -> CalibrationKeys | None:
        return self.recipe.score.calibration if self.recipe.score else None

    def _identify(self) -> None:
        self._dense_model()
        self.folder.identify(self._fingerprints)

    def _calibration(self, keys: CalibrationKeys) -> Calibration:
        name = json.dumps(keys.plain())
        if name not in self._drawn:
            dataset = keys.data.build()
            self._drawn[name] = Calibration.draw(dataset, keys.batch_size, self.adapter, self._dense_model())
        return self._drawn[name]

    def _batches(self, keys: CalibrationKeys | None, samples: int | None = None) -> list[Batch]:
        return self._calibration(keys).batches(samples, self._device) if keys is not None else []

    def _planned(self) -> Plan:
        if self.folder.plan.is_file():
            return Plan.load(read_json(self.folder.plan))
        model = self._dense_model()
        anatomy = Anatomy.of(self.adapter.towers(model), self.adapter.layers)
        pools = self.prepared.pools_in(anatomy)
        layers = [pair for pool in pools for pair in pool.layers]
        allocator = self.recipe.allocate.build()
        looks = getattr(allocator, "takes", "score") is not None
        scores = self._scored(model, anatomy, layers) if looks else None
        granularity = self.recipe.score.granularity if looks and self.recipe.score else "layer"
        with self._stage("allocate"):
            plan = make_plan(pools, allocator, granularity, scores)
            write_whole(self.folder.plan, json.dumps(plan.dump(), indent=1))
        return plan

    def _scored(self, model: nn.Module, anatomy: Anatomy, layers: Sequence[tuple[Block, Layer]]) -> Scores:
        score = self.recipe.score
        assert score is not None  # checked with the recipe
        self._take_over_scores()
        scorer = score.part.build()
        batches = self._batches(self.recipe.score_calibration, getattr(scorer, "samples", None))
        replay = Replay(model, self.adapter, batches, anatomy=anatomy, seed=self.recipe.seed, dtype=torch.float32)
        in_order = sorted(layers, key=lambda pair: anatomy.blocks.index(pair[0]))
        with self._stage("score"), replay:
            return score_layers(scorer, score.aggregate, replay, in_order, self.folder.scores, self.emit)

    def _take_over_scores(self) -> None:
        if self.recipe.reuse and not self.folder.scores.is_file():
            found = found_scores(self.recipe, self._fingerprints, self.folder.path)
            if found is not None:
                write_whole(self.folder.scores, found.read_bytes())

    def _evaluate(self, stage: str, model: nn.Module | None = None) -> None:
        for part in self.recipe.evaluate:
            if evaluation_in(self.folder, stage, part) is not None:
                continue
            line = self._taken_over(part) if stage == "dense" else None
            append_line(self.folder.evaluations, line or self._evaluated(stage, part, model or self._dense_model()))

    def _taken_over(self, part: Part) -> dict[str, Any] | None:
        if not self.recipe.reuse:
            return None
        return found_measures(self.recipe, self._model_fingerprint, self.folder.path, part)

    def _evaluated(self, stage: str, part: Part, model: nn.Module) -> dict[str, Any]:
        with self._stage(f"evaluate {stage}"), torch.no_grad():
            measures: Mapping[str, Measure] = part.build()(model, self.adapter)
        named = {name: asdict(measure) for name, measure in measures.items()}
        return {"stage": stage, "evaluator": part.plain(), "measures": named}

    def _pruned(self, plan: Plan) -> nn.Module:
        model = self._dense_model()
        batches = self._batches(self.recipe.calibration)
        replay = Replay(model, self.adapter, batches, seed=self.recipe.seed)
        with self._stage("prune"):
            masks = FineStep(replay, plan, self.prepared.pruners, self.folder.blocks, self.emit)()
        del replay
        with self._stage("save"):
            self._save(model, masks)
        self._dense = None
        return model

    def _save(self, model: nn.Module, masks: PackedMasks) -> None:
        save_masks(self.folder.masks, masks)
        with whole_folder(self.folder.model) as folder:
            self.adapter.save(model, folder)
        shutil.rmtree(self.folder.blocks, ignore_errors=True)

    def _reloaded(self) -> nn.Module:
        """The pruned model of an earlier process, as its ``model/`` has it."""
        self._dense = None
        gc.collect()
        with self._stage("load"):
            return self.adapter.load(open_source(str(self.folder.model), Path.cwd()), None, self._device)

    def _export(self, model: nn.Module) -> None:
        for part, name in zip(self.recipe.export, export_names(self.recipe.export), strict=True):
            record = self.folder.exports / f"{name}.json"
            if record.is_file() and read_json(record)["exporter"] == part.plain():
                continue
            with self._stage(f"export {name}"):
                with whole_folder(self.folder.exports / name) as folder:
                    files = part.build()(model, self.adapter, folder)
                    described = {
                        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
                        for file in files
                    }
                write_whole(record, json.dumps({"exporter": part.plain(), "files": described}, indent=1))

    def _reported(self, plan: Plan, model: nn.Module) -> dict[str, Any]:
        report = make_report(self.folder, self.recipe, plan, model, self.adapter, self._device, self._warnings)
        write_report(self.folder, report)
        return report


def export_names(parts: Sequence[Part]) -> list[str]:
    """A folder name for each export: the exporter's, numbered from the second of one kind on."""
    names: list[str] = []
    for part in parts:
        base = part.use.replace(":", ".")
        same = sum(name == base or name.startswith(f"{base}-") for name in names)
        names.append(f"{base}-{same + 1}" if same else base)
    return names
