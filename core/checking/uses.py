"""See which parameters of a model its forward multiplies by, whatever module, slice or view they are held in.

It looks at the operations that torch carries out, below every function in Python that may hide what it calls. No
adapter is asked: this is what adapters are held against.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

_PRODUCT = re.compile(r"mm|linear|matmul")
_SUMMED = re.compile(r"_?(add|badd|addb)")
"""A product that is added to something: its two sides stand behind that."""
_CAST, _PICKED = ("_to_copy", "clone"), ("index", "index_select")


class Uses:
    """Knows which parameters took part in forwards, and which of them as the matrix of a product.

    A bias of many experts has two axes, and so has a norm of every head: nothing is multiplied by either as by a
    matrix. An embedding that is looked up has taken part, and so have queries, which are what is multiplied.
    """

    def __init__(self) -> None:
        self._touched: set[int] = set()
        self._multiplied: set[int] = set()

    def as_matrix(self, parameter: nn.Parameter) -> bool:
        """Say whether something was multiplied by a parameter, or by a part of it."""
        return id(parameter) in self._multiplied

    def at_all(self, parameter: nn.Parameter) -> bool:
        """Say whether a parameter took part in anything."""
        return id(parameter) in self._touched

    def add(self, parameter: int, *, as_matrix: bool) -> None:
        """Add one use of the parameter of this identity."""
        self._touched.add(parameter)
        if as_matrix:
            self._multiplied.add(parameter)


@contextmanager
def watching_uses(model: nn.Module, uses: Uses) -> Iterator[None]:
    """Add to ``uses`` what a model's parameters are used for while this is open.

    A parameter keeps its identity wherever and how precisely it is held.
    """
    with _Operations(model, uses):
        yield


class _Operations(TorchDispatchMode):
    """Hears of every operation, and follows a parameter through its views, its casts, and matrices picked of many."""

    def __init__(self, model: nn.Module, uses: Uses) -> None:
        super().__init__()
        self._parameters = {id(parameter): parameter for parameter in model.parameters()}
        self._copies = WeakIdKeyDictionary()
        self._uses = uses

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.__name__.partition(".")[0]
        found = [self._parameter(argument) for argument in args]
        matrix = (2 if _SUMMED.match(name) else 1) if _PRODUCT.search(name) else None
        for place, parameter in enumerate(found):
            if parameter is not None:
                self._uses.add(parameter, as_matrix=place == matrix)
        result = func(*args, **(kwargs or {}))
        if found and found[0] is not None and self._is_copied(found[0], name):
            self._copies[result] = found[0]
        return result

    def _parameter(self, value: Any) -> int | None:
        """Give the identity of the parameter that a tensor is, is a view of, or was copied from."""
        if isinstance(value, list | tuple):  # as what is concatenated
            return next((one for one in map(self._parameter, value) if one is not None), None)
        if not isinstance(value, Tensor):
            return None
        whole = value if value._base is None else value._base
        found: int | None = id(whole) if id(whole) in self._parameters else self._copies.get(whole)
        return found

    def _is_copied(self, parameter: int, name: str) -> bool:
        """Say whether an operation gives the same matrices anew; what is picked of a single one is rows, a look-up."""
        return name in _CAST or (name in _PICKED and self._parameters[parameter].ndim > 2)
