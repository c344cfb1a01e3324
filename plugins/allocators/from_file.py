"""The allocator ``from_file`` takes over the plan of another run.

k_g = Σ of what the group's layers keep in that plan

Without a sparsity the recipe keeps what the plan does, so that an edited plan says what each layer keeps.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ecoflap.core.budget.counts import Group
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.disk.json_files import json_value, read_bytes
from ecoflap.core.errors import NAMED, EcoflapError, FormatError, first_of, nearest
from ecoflap.core.sealing.sealed_text import read_sealed_json

_WAY_OUT = "Name a plan of this model, or keep their towers whole here, by towers: {NAME: keep}"


@dataclass(frozen=True)
class FromFile:
    """Let every group keep what its layers keep in a ``plan.json``.

    :param path: The ``plan.json``, or the folder of the run that wrote it. A plan with a seal is held to it; one that
        was written by hand has none.
    """

    path: Path
    takes: ClassVar[None] = None

    def takes_over(self) -> Iterable[Path]:
        return [self.path]

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the recipe prunes in rounds, and where the plan has more than would be taken over.

        That is patterns, of which counts would be left, and a tower or a matrix outside of blocks that stays whole.
        """
        if context.recipe.round_count > 1:
            yield "a plan of another run is for one sparsity, and each round has its own: remove rounds:"
        with suppress(EcoflapError):  # the call gives the reasons
            planned = self._layers()
            yield from self._patterns(planned, [layer.name for _, layer in context.scored.layers()])
            pruned = {name for name, layer in planned.items() if layer["keep"] < layer["size"]}
            yield from context.left_dense(self._file, pruned.__contains__)
            yield from self._strangers(pruned, context)

    def keeps(self, layers: Sequence[str]) -> int | None:
        """Count what the plan keeps of these layers in all; None where it cannot be read or lacks one of them."""
        try:
            planned = self._layers()
        except EcoflapError:
            return None
        return sum(planned[name]["keep"] for name in layers) if all(name in planned for name in layers) else None

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        layers = self._layers()
        missing = [name for group in groups for name in group.layer_names if name not in layers]
        problems = [*self._missing(missing, layers), *(one for group in groups for one in self._sizes(group, layers))]
        if problems:
            raise EcoflapError(*problems)
        counts = [sum(layers[name]["keep"] for name in group.layer_names) for group in groups]
        if sum(counts) != keep:
            fitting = _sparsity_that_leaves(sum(counts), sum(group.size for group in groups))
            raise EcoflapError(
                f"{self._file}: its plan keeps {sum(counts)} weights of these layers, this recipe's sparsity {keep}. "
                f"Leave sparsity out, so that the plan says it; or, where a sparsity is needed, write {fitting}"
            )
        return counts

    @property
    def _file(self) -> Path:
        return self.path / "plan.json" if self.path.is_dir() else self.path

    def _plan(self) -> Any:
        try:
            plan = json_value(read_bytes(self._file))
        except ValueError as error:
            raise FormatError(f"{self._file}: it is no plan ({error}); take one that a run has written") from None
        if self.path.is_dir() or (isinstance(plan, dict) and "seal" in plan):
            return read_sealed_json(self._file, "Restore it; or copy it, take its seal out, and name the copy as path")
        return plan

    def _layers(self) -> Mapping[str, Mapping[str, Any]]:
        if not self._file.is_file():
            raise EcoflapError(f"{self._file}: no such file; path is a plan.json, or the folder of a run that has one")
        plan = self._plan()
        layers = plan.get("layers") if isinstance(plan, dict) else None
        if not isinstance(layers, dict):
            raise FormatError(f'{self._file}: it is no plan; a plan has "layers": {{name: {{"size": …, "keep": …}}}}')
        wrong = [name for name, layer in layers.items() if not _is_entry(layer)]
        if wrong:
            raise FormatError(
                f"{self._file}: of {first_of(wrong)} it does not say by whole numbers how many weights there "
                f'are and how many stay: "size": …, "keep": …'
            )
        return layers

    def _patterns(self, planned: Mapping[str, Mapping[str, Any]], layers: Sequence[str]) -> Iterator[str]:
        """Say which layers keep a pattern in the plan, and would keep as many weights wherever they are here."""
        patterns = {name: planned[name].get("pattern") for name in layers if name in planned}
        names = [name for name, pattern in patterns.items() if pattern]
        if names:
            found = sorted({str(patterns[name]) for name in names})
            yield (
                f"{self._file}: it has patterns, {' and '.join(found)} in {len(names)} layers "
                f"({first_of(names)}), and this takes over counts alone. Write the pattern under sparsity: in "
                f"place of allocate:, or of a tower under towers:; or name a copy without its seal and patterns, whose "
                f"counts are pruned unstructured"
            )

    def _strangers(self, pruned: Iterable[str], context: PlanContext) -> Iterator[str]:
        """Say what of this model the plan prunes that is no layer here, such as a head that is not included."""
        names = sorted(context.beside_layers(pruned))
        if names:
            yield (
                f"{self._file}: it prunes what is no layer here: {first_of(names)}. Name under include: "
                f"what may be pruned; or name a copy without its seal and without these"
            )

    def _missing(self, missing: Sequence[str], layers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Say which layers the plan lacks; of many, as a plan of another model does, the first few."""
        if len(missing) > NAMED:
            yield (
                f"{self._file}: it lacks {len(missing)} layers ({first_of(missing)}), and has others "
                f"({first_of([*layers])}). {_WAY_OUT}"
            )
            return
        yield from (f"{self._file}: it has no layer {one!r}.{nearest(one, layers)} {_WAY_OUT}" for one in missing)

    def _sizes(self, group: Group, layers: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Say why a group cannot keep what the plan has for its layers."""
        names = group.layer_names
        if any(name not in layers for name in names):
            return []
        size, kept = (sum(layers[name][key] for name in names) for key in ("size", "keep"))
        if size != group.size:
            return [f"{self._file}: {', '.join(names)} has {size} weights there and {group.size} in this model"]
        if not group.floor <= kept <= group.most:
            return [f"{self._file}: it keeps {kept} of {group.name}, which may keep {group.floor} to {group.most} here"]
        return []


def _sparsity_that_leaves(kept: int, size: int) -> float:
    """Give a short decimal of which ``keep_count`` makes exactly this many weights: rounded down by less than one."""
    power: int = 10 ** len(str(size))
    return (size - kept) * power // size / power


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(type(entry.get(key)) is int for key in ("size", "keep"))


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"from_file": FromFile}
