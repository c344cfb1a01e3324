"""Parts whose every member raises or answers with nonsense, one at a time; all else of them is a shipped part's."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import torch

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.options import (
    DatasetOptions,
    EvaluatorOptions,
    ExporterOptions,
    ScorerOptions,
)
from ecoflap.core.contracts.records import Check, Estimate, Exported, Measure, Pruned, Sample
from ecoflap.exporters.safetensors import Safetensors
from ecoflap.plugins.allocators.ecoflap import Ecoflap
from ecoflap.plugins.datasets.text import Text
from ecoflap.plugins.evaluators.perplexity import Perplexity
from ecoflap.plugins.pruners.wanda import Wanda
from ecoflap.plugins.scorers.zeroth_order import ZerothOrder

HUGE = 10**400
NAN = float("nan")


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*given: Any, **named: Any) -> Any:
        raise error

    return fail


def answering(value: Any) -> Callable[..., Any]:
    return lambda *given, **named: value


def yielding(*values: Any, then: BaseException | None = None) -> Callable[..., Any]:
    def each(*given: Any, **named: Any) -> Iterator[Any]:
        yield from values
        if then is not None:
            raise then

    return each


ERRORS: dict[str, BaseException] = {
    "ValueError": ValueError(),
    "KeyError": KeyError("weight"),
    "of two lines": RuntimeError("one\n\n  two\x1b[31m"),
    "AssertionError": AssertionError(),
    "RecursionError": RecursionError("deep"),
    "StopIteration": StopIteration(3),
    "full disk": OSError(28, "No space left on device"),
    "SystemExit": SystemExit(0),
    "MemoryError": MemoryError(),
    "NotImplementedError": NotImplementedError(),
}
PLAIN: dict[str, Any] = {
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "huge": HUGE,
    "-huge": -HUGE,
    "nan": NAN,
    "inf": float("inf"),
    "text": "text",
    "nothing": "",
    "bytes": b"x",
    "[]": [],
    "()": (),
    "{}": {},
    "object": object(),
    "[None]": [None],
    "[nan]": [NAN],
    "[huge]": [HUGE],
    "(1, 2)": (1, 2),
    "{a: nan}": {"a": NAN},
    "{1: None}": {1: None},
    "class": int,
    "tensor": torch.full((3, 5), NAN),
    "no tensor": torch.zeros(0),
    "integers": torch.ones(2, dtype=torch.int64),
    "nested": [[[[]]]],
    "texts": ["a", "b"],
    "many": list(range(1000)),
    "surrogate": "\ud800",
    "control": "\x00\x1b",
}
ANSWERS: dict[str, Callable[..., Any]] = {
    **{f"raises {name}": raising(error) for name, error in ERRORS.items()},
    **{f"gives {name}": answering(value) for name, value in PLAIN.items()},
    **{f"yields {name}": yielding(value) for name, value in PLAIN.items()},
    "yields and raises": yielding(then=KeyError("late")),
}


def scoring(name: Any, *rest: Any) -> Callable[..., Any]:
    """Yield this of the first layer, where L stands for its name."""
    return lambda self, replay, layers: iter([(layers[0].name if name == "L" else name, *rest)])


SCORES = {
    f"scores {name}": scoring(*value)
    for name, value in {
        "huge": ("L", HUGE),
        "nan": ("L", NAN),
        "text": ("L", "1"),
        "True": ("L", True),
        "no name": (None, 1.0),
        "list": (["L"], 1.0),
        "other": ("nobody", 1.0),
        "tensor": ("L", torch.ones(())),
        "three": ("L", 1.0, 2),
        "estimate": ("L", Estimate([1.0, NAN])),
        "negative": ("L", -1.0),
        "bytes": (b"L", 1.0),
        "complex": ("L", 1j),
        "surrogate": ("\ud800", 1.0),
        "number": (3, 1.0),
    }.items()
}


def made(kind: type[Any], *values: Any, **named: Any) -> Any:
    """Make a record of ours with values of any type, past whatever would look at them when it is made."""
    if issubclass(kind, tuple):
        return tuple.__new__(kind, (*values, *kind._field_defaults.values())[: len(kind._fields)])
    one = object.__new__(kind)
    given = dict(zip([field.name for field in fields(kind)], values, strict=False)) | named
    for field in fields(kind):
        object.__setattr__(one, field.name, given.get(field.name, field.default))
    return one


def pruned(make: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    return lambda self, weight, *rest: make(weight)


PRUNED = {
    "no mask": pruned(lambda w: made(Pruned, None, w)),
    "flat mask": pruned(lambda w: made(Pruned, (w != 0).flatten(), w)),
    "float mask": pruned(lambda w: made(Pruned, (w != 0).float(), w)),
    "list mask": pruned(lambda w: made(Pruned, [[True]], w)),
    "full mask": pruned(lambda w: made(Pruned, torch.ones_like(w, dtype=torch.bool), w)),
    "no weight": pruned(lambda w: made(Pruned, w != 0, None)),
    "double": pruned(lambda w: made(Pruned, _half(w), (w * _half(w)).double())),
    "nan": pruned(lambda w: made(Pruned, _half(w), torch.where(_half(w), NAN, 0.0).to(w.dtype))),
    "not zero": pruned(lambda w: made(Pruned, _half(w), w)),
    "transposed": pruned(lambda w: made(Pruned, _half(w).T, w.T)),
    "empty": pruned(lambda w: made(Pruned, torch.zeros(0, dtype=torch.bool), torch.zeros(0))),
    "meta": pruned(lambda w: made(Pruned, torch.ones_like(w, dtype=torch.bool, device="meta"), w.to("meta"))),
    "notes of no text": pruned(lambda w: made(Pruned, _half(w), w * _half(w), (None, 3, object()))),
    "notes": pruned(lambda w: made(Pruned, _half(w), w * _half(w), 7)),
    "sparse": pruned(lambda w: made(Pruned, _half(w).to_sparse(), w.to_sparse())),
}


def _half(weight: torch.Tensor) -> torch.Tensor:
    """Keep every other weight, which is what the recipe asks for."""
    return (torch.arange(weight.numel()) % 2).bool().reshape(weight.shape)


KEEPS = {
    "too many": lambda self, groups, keep: [keep] * len(groups),
    "floats": lambda self, groups, keep: [keep / len(groups)] * len(groups),
    "nan": lambda self, groups, keep: [NAN] * len(groups),
    "huge": lambda self, groups, keep: [HUGE, -HUGE + keep, *([0] * (len(groups) - 2))],
    "negative": lambda self, groups, keep: [-1, keep + 1, *([0] * (len(groups) - 2))],
    "texts": lambda self, groups, keep: ["1"] * len(groups),
    "bools": lambda self, groups, keep: [True] * len(groups),
    "a mapping": lambda self, groups, keep: {group.name: 1 for group in groups},
    "tensor": lambda self, groups, keep: torch.full((len(groups),), keep // len(groups)),
    "nothing": lambda self, groups, keep: [],
}
MEASURED = {
    f"measures {name}": answering(value)
    for name, value in {
        "nan": {"m": made(Measure, NAN, 1, NAN)},
        "huge": {"m": made(Measure, HUGE, HUGE, HUGE)},
        "text": {"m": made(Measure, "a", "b", "c")},
        "float": {"m": 1.0},
        "list": [made(Measure, 1.0, 1, 0.0)],
        "no name": {None: made(Measure, 1.0, 1, 0.0)},
        "none": {"m": made(Measure, None, None, None)},
        "name": {"\x00\x1b\n": made(Measure, 1.0, 1, 0.0)},
        "surrogate": {"\ud800": made(Measure, 1.0, 1, 0.0, "\ud800")},
        "tensor": {"m": made(Measure, torch.ones(()), 1, 0.0)},
        "negative": {"m": made(Measure, -1.0, -1, -1.0)},
        "inf": {"m": made(Measure, float("inf"), 0, float("inf"))},
    }.items()
}
SAMPLED = {
    f"samples {name}": yielding(value)
    for name, value in {
        "empty": Sample(),
        "text": made(Sample, text=3),
        "tokens": made(Sample, tokens=[1, 2]),
        "floats": made(Sample, tokens=torch.ones(4)),
        "outside": made(Sample, tokens=torch.full((8,), 10**6)),
        "negative": made(Sample, tokens=torch.full((8,), -1)),
        "none": made(Sample, tokens=torch.zeros(0, dtype=torch.int64)),
        "image": made(Sample, image="x"),
        "square": made(Sample, tokens=torch.zeros((2, 2), dtype=torch.int64)),
        "label": made(Sample, label="a"),
        "long": made(Sample, tokens=torch.zeros(5000, dtype=torch.int64)),
    }.items()
}
EXPORTED = {
    f"exports {name}": lambda self, pruned, folder, write=write: write(folder)
    for name, write in {
        "no file": lambda folder: made(Exported, ()),
        "a missing file": lambda folder: made(Exported, (folder / "x",)),
        "outside": lambda folder: made(Exported, (folder.parent / "x",)),
        "texts": lambda folder: made(Exported, ("x",)),
        "checks": lambda folder: made(Exported, (), checks=(made(Check, "x", "v", "r", NAN, NAN),)),
        "huge": lambda folder: made(Exported, (), dense_bytes=HUGE),
        "notes": lambda folder: made(Exported, (), notes=(None, 3)),
        "tensors": lambda folder: made(Exported, (), tensors=("x",)),
        "none": lambda folder: made(Exported, None),
    }.items()
}


class Kind(NamedTuple):
    """One kind of part.

    :param base: The part whose members are replaced.
    :param members: Those that are methods.
    :param values: Those that are values.
    :param answers: What its call answers beside what is nonsense for all.
    """

    base: type[Any]
    members: tuple[str, ...]
    values: tuple[str, ...]
    answers: dict[str, Callable[..., Any]]


OPTIONS = (AdapterOptions, DatasetOptions, EvaluatorOptions, ExporterOptions, ScorerOptions)
COMMON = ("problems", "runs_code_of")
KINDS = {
    "scorer": Kind(ZerothOrder, ("__call__", "forwards", *COMMON), ("unit", "samples", "aggregate", "data"), SCORES),
    "allocator": Kind(Ecoflap, ("__call__", *COMMON), ("takes",), KEEPS),
    "pruner": Kind(Wanda, ("__call__", *COMMON), ("needs",), PRUNED),
    "dataset": Kind(
        Text, ("__call__", "classes", "tokens_per_sample", "files", *COMMON), ("fetches", "slow_to_begin"), SAMPLED
    ),
    "evaluator": Kind(Perplexity, ("__call__", "lacks", "files", *COMMON), ("wants", "loss_batch_size"), MEASURED),
    "exporter": Kind(
        Safetensors, ("__call__", "views_written", "predicted_bytes", "notes", *COMMON), ("densifies",), EXPORTED
    ),
    "adapter": Kind(
        LlamaAdapter,
        (
            "matches",
            "load",
            "towers",
            "layers",
            "max_length",
            "collate",
            "loss",
            "tokens",
            "save",
            "running",
            "left_out",
            "own_inputs",
            "export_views",
            "views_refused",
            "why_not",
            "refuses",
            "save_surroundings",
            "read_processor",
            *COMMON,
        ),
        ("priority", "processor"),
        {},
    ),
}


def broken_parts(kind: str) -> Iterator[tuple[str, type[Any]]]:
    """Yield each broken part of a kind, with the name of what is wrong with it."""
    one = KINDS[kind]
    for member in one.members:
        for name, answer in (ANSWERS | (one.answers if member == "__call__" else {})).items():
            yield f"{member} {name}", _with(one.base, member, _taking(one.base, member, answer))
    for member in one.values:
        for name, value in PLAIN.items():
            yield f"{member} is {name}", _with(one.base, member, value)
        yield f"{member} raises", _with(one.base, member, property(raising(KeyError("member"))))


def _with(base: type[Any], member: str, value: Any) -> type[Any]:
    return type("Broken", (base,), {member: value, "__module__": __name__, "__qualname__": "Broken"})


def _taking(base: type[Any], member: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """Take what the member takes, for a part that takes something else is refused before it is called."""

    def call(*given: Any, **named: Any) -> Any:
        return answer(*given, **named)

    declared = next(filter(None, (getattr(one, member, None) for one in (base, *OPTIONS))))
    call.__signature__ = inspect.signature(declared)  # type: ignore[attr-defined]
    return call
