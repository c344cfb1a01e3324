"""Watch one forward of a model: which blocks and matrices run, in which order, and on whose outputs.

Every tensor is marked with what it was made of: the outputs of blocks, of matrices outside them, and the model's
inputs. Inside a block the marks are the block's own arguments, so a matrix that reads another tower is told from one
that reads the tokens of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ecoflap.adapters.hubs.weightless import PRODUCTS, zeros_of
from ecoflap.core.errors import ModelError

Marks = frozenset[str]
NONE: Marks = frozenset()
OWN = "0"
"""The mark of a block's first tensor, its hidden states, and of what is made of them."""
CHOICES: frozenset[Any] = frozenset({
    torch.topk, Tensor.topk, torch.sort, Tensor.sort, torch.argsort, Tensor.argsort, torch.argmax, Tensor.argmax,
})  # fmt: skip

WRITING = frozenset({
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__idiv__", "__itruediv__", "__ifloordiv__", "__imod__",
    "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
})  # fmt: skip
"""Names of functions that write into their first argument, beside those that end with ``_``."""


@dataclass(frozen=True)
class Use:
    """One product of something with a parameter, or with a part of it.

    :param shape: What was multiplied.
    :param read: The marks of what was multiplied.
    :param offset: Where in the parameter the part begins, in numbers.
    :param size: How many numbers the part has.
    :param transposed: Whether the parameter holds ``[in, out]``.
    """

    parameter: str
    shape: tuple[int, ...]
    read: Marks
    offset: int
    size: int
    transposed: bool


@dataclass
class Run:
    """One call of a block, or of a matrix outside the blocks.

    :param name: The block's, or the matrix' module's.
    :param shape: Of its hidden states.
    :param reads: What each of its arguments was made of, by number.
    :param uses: The products in it.
    :param chosen: Parameters that others are chosen by, such as those of routers.
    :param touched: Parameters that anything is done with.
    """

    name: str
    shape: tuple[int, ...]
    reads: dict[str, Marks]
    uses: list[Use] = field(default_factory=list)
    chosen: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)


@dataclass
class Watched:
    """All that was seen in a forward.

    :param runs: In the order in which they began.
    :param result: What the result was made of.
    :param overwritten: Matrices outside the blocks whose outputs something was written into.
    :param looked_up: Parameters whose rows or columns were looked up by number outside the blocks.
    """

    runs: list[Run]
    result: Marks
    overwritten: set[str] = field(default_factory=set)
    looked_up: set[str] = field(default_factory=set)

    def made_of(self, marks: Marks) -> set[str]:
        """Give all that something was made of, directly or not: blocks, matrices outside them, and inputs."""
        reads: dict[str, set[str]] = {}
        for run in self.runs:
            reads.setdefault(run.name, set()).update(*run.reads.values())
        found: set[str] = set()
        wanted = set(marks)
        while wanted:
            name = wanted.pop()
            found.add(name)
            wanted |= reads.get(name, set()) - found
        return found


class _Marked:
    """Holds the marks of tensors by their storage, which views share; the tensors are kept, so that none is reused."""

    def __init__(self) -> None:
        self._marks: dict[int, tuple[Tensor, Marks]] = {}

    def of(self, tensor: Tensor) -> Marks:
        return self._marks.get(_storage(tensor), (tensor, NONE))[1]

    def of_all(self, values: Any) -> Marks:
        return frozenset().union(*(self.of(tensor) for tensor in tensors_among(values)))

    def put(self, values: Any, marks: Marks) -> None:
        for tensor in tensors_among(values):
            if _storage(tensor):
                self._marks[_storage(tensor)] = (tensor, marks)

    def add(self, tensor: Tensor, marks: Marks) -> None:
        self.put(tensor, marks | self.of(tensor))


class _Parameters:
    """Knows which parameter a tensor is, or is a view of, by where it lies.

    Several may lie in one storage, as those that transformers cuts out of one tensor of a file.
    """

    def __init__(self, model: nn.Module) -> None:
        self.named = dict(_named(model))
        self._within: dict[int, dict[int, str]] = {}
        for name, parameter in self.named.items():
            self._within.setdefault(_storage(parameter), {})[int(parameter.storage_offset())] = name

    def name_of(self, tensor: Tensor) -> str:
        """Name the parameter; give nothing for a tensor of something else."""
        place = _storage(tensor)
        places = self._within.get(place, {}) if place else {}
        if len(places) < 2:
            return next(iter(places.values()), "")
        at = int(tensor.storage_offset())
        return next((name for begin, name in sorted(places.items(), reverse=True) if self._holds(name, at - begin)), "")

    def names_among(self, values: Any) -> set[str]:
        """Name all parameters among some values."""
        return {self.name_of(tensor) for tensor in tensors_among(values)} - {""}

    def _holds(self, name: str, at: int) -> bool:
        """Say whether a place lies in a parameter, counted from where that begins; between its rows may be others'."""
        parameter = self.named[name]
        for step, size in sorted(zip(parameter.stride(), parameter.shape, strict=True), reverse=True):
            number = at // max(step, 1)
            if not 0 <= number < size:
                return False
            at -= number * step
        return at == 0


class Watch(TorchFunctionMode):
    """Stands at every function of torch while a model runs.

    :param blocks: By name.
    :param inputs: The model's, by name.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, nn.Module], inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self._blocks = blocks
        self._inside: Run | None = None
        self._parameters = _Parameters(model)
        self._outer, self._inner, self._makers = _Marked(), _Marked(), _Marked()
        self._views: dict[int, tuple[Tensor, Tensor]] = {}
        self._made_outside: dict[int, str] = {}
        self._overwritten: set[str] = set()
        self._looked_up: set[str] = set()
        for name, value in inputs.items():
            self._outer.put(value, frozenset({name}))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _writes(func) and args and isinstance(args[0], Tensor):
            self._note_written(args[0])
        if func not in PRODUCTS:
            return self._passed_on(func, args, kwargs, func(*args, **kwargs))
        made = zeros_of(func, args, kwargs)
        uses = [*self._uses(func, args, kwargs)]
        self._passed_on(func, args, kwargs, made)
        for use in uses:
            self._note(use, made)
        return made

    def result(self, values: Any) -> Watched:
        """Say what was seen, and what the result was made of."""
        return Watched(self.runs, self._outer.of_all(values), self._overwritten, self._looked_up)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch while this lasts."""
        with ExitStack() as stack:
            for name, module in self._blocks.items():
                begun = module.register_forward_pre_hook(partial(self._begin, name), with_kwargs=True)
                stack.callback(begun.remove)
                stack.callback(module.register_forward_hook(partial(self._end, name)).remove)
            stack.enter_context(self)
            yield

    def _begin(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            given = [*tensors_among((args, kwargs))]
            run = Run(name, tuple(given[0].shape) if given else (), {})
            self._inner, self._makers = _Marked(), _Marked()
            for number, tensor in enumerate(given):
                run.reads[str(number)] = self._outer.of(tensor)
                self._inner.add(tensor, frozenset({str(number)}))
            self.runs.append(run)
            self._inside = run

    def _end(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():
            self._outer.put(output, frozenset({name}))
            self._inside, self._inner, self._makers = None, _Marked(), _Marked()

    def _passed_on(self, func: Any, args: Any, kwargs: Any, made: Any) -> Any:
        """Mark what a function makes with the marks of what it was given; what it writes to gets them too."""
        with torch._C.DisableTorchFunction():
            given = (args, kwargs)
            self._follow_view(func, args, kwargs, made)
            if self._inside is not None:
                self._inside.touched |= self._parameters.names_among(given)
                self._inside.chosen |= self._makers.of_all(given) if func in CHOICES else set()
            elif func is nn.functional.embedding:
                self._looked_up |= self._parameters.names_among(given)
            for marked in (self._outer,) if self._inside is None else (self._inner, self._makers):
                marks = marked.of_all(given)
                if marks:
                    targets = [*tensors_among(made), *([args[0]] if _writes(func) and args else [])]
                    for tensor in targets:
                        if isinstance(tensor, Tensor):
                            marked.add(tensor, marks)
        return made

    def _note_written(self, tensor: Tensor) -> None:
        """Note what is written to.

        :raises ModelError: Where it is a weight: what runs would be another model than what is saved.
        """
        with torch._C.DisableTorchFunction():
            name, place = self._parameters.name_of(tensor), _storage(tensor)
            if name:
                raise ModelError(
                    f"{name} is written to by the model's own forward, so a model that has run is another than the one "
                    f"that was read, and what is pruned would not be what is saved"
                )
            if place in self._made_outside:
                self._overwritten.add(self._made_outside[place])

    def _follow_view(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """Keep how a view of a parameter lies in it; what is lent to a model without weights does not tell."""
        given = {id(tensor) for tensor in tensors_among((args, kwargs)) if self._parameters.name_of(tensor)}
        views = [tensor for tensor in tensors_among(made) if self._parameters.name_of(tensor)]
        if given and any(id(tensor) not in given for tensor in views):
            bare_args, bare_kwargs = pytree.tree_map_only(Tensor, self._bare, (args, dict(kwargs)))
            for tensor, bare in zip(tensors_among(made), tensors_among(func(*bare_args, **bare_kwargs)), strict=False):
                self._views[id(tensor)] = (tensor, bare)

    def _bare(self, tensor: Tensor) -> Tensor:
        """Give a tensor without numbers that lies in its parameter as this one does."""
        if id(tensor) in self._views:
            return self._views[id(tensor)][1]
        if not self._parameters.name_of(tensor):
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def _note(self, use: Use, made: Any) -> None:
        with torch._C.DisableTorchFunction():
            if self._inside is not None:
                self._inside.uses.append(use)
                self._makers.put(made, frozenset({use.parameter}))
                return
            name = use.parameter.rpartition(".")[0]
            self.runs.append(Run(name, use.shape, {OWN: use.read}, [replace(use, read=frozenset({OWN}))]))
            self._outer.put(made, frozenset({name}))
            self._made_outside[_storage(made)] = name

    def _uses(self, func: Any, args: Any, kwargs: Any) -> Iterator[Use]:
        """Find the parameter that something is multiplied with, which is the second operand."""
        with torch._C.DisableTorchFunction():
            kind = getattr(func, "__name__", "")
            operands = tensors_among((args, kwargs))[1 if kind in ("addmm", "baddbmm") else 0 :][:2]
            if len(operands) < 2 or "conv" in kind or "attention" in kind:
                return
            (other, weight), marked = operands, self._outer if self._inside is None else self._inner
            name = self._parameters.name_of(weight)
            parameter = self._parameters.named.get(name, weight)
            if name and parameter.ndim >= 2 and weight.ndim >= 2:
                bare = self._bare(weight)
                turned = _turned(bare)
                # Some rows after others, each with inputs of their own.
                grouped = parameter.ndim == 2 and other.ndim == bare.ndim == 3
                for part, shape in [(one, other.shape[1:]) for one in bare] if grouped else [(bare, other.shape)]:
                    yield Use(
                        name, tuple(shape), marked.of(other), int(part.storage_offset()), part.numel(),
                        transposed=turned if kind == "linear" else not turned,
                    )  # fmt: skip


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Name every parameter; one that a linear layer shares with an embedding by the linear layer, which multiplies."""
    found = model.named_parameters(remove_duplicate=False)
    return sorted(found, key=lambda one: isinstance(model.get_submodule(one[0].rpartition(".")[0]), nn.Linear))


def _turned(used: Tensor) -> bool:
    """Say whether a view of a parameter has its last two axes exchanged."""
    rows, columns = used.stride()[-2:]
    return rows < columns


def _writes(func: Any) -> bool:
    """Say whether a function writes into its first argument: ``add_``, ``x[0] = …``, ``x += …``."""
    name = getattr(func, "__name__", "")
    return name in WRITING or (name.endswith("_") and not name.endswith(("__", "requires_grad_")))


def _storage(tensor: Tensor) -> int:
    """Give where a tensor lies; 0 for one that lies nowhere, as one that is empty or stands for many in a vmap."""
    try:
        return tensor.untyped_storage().data_ptr()
    except NotImplementedError:
        return 0


def tensors_among(values: Any) -> list[Tensor]:
    """Give the tensors among nested values; those of an output of transformers too, which is a mapping."""
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
