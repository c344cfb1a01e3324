"""Have functions with a backward of their own run as plain operations, for as long as a view is traced.

A trace holds no call of Python, such as ``GeLUFunction.apply`` in Bloom. What such a function does forwards it does
with operations of torch, and those a trace holds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd import Function
from torch.autograd.function import FunctionCtx


@contextmanager
def forwards_only() -> Iterator[None]:
    """Replace what calls them, and put it back at the end."""
    own = vars(Function)["apply"]
    Function.apply = classmethod(_forward)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Function.apply = own  # type: ignore[method-assign]


def _forward(cls: Any, *args: Any) -> Any:
    """Call a function's forward: with what it keeps for its backward, or without where that is set up apart."""
    is_apart = cls.setup_context is not Function.setup_context
    return cls.forward(*args) if is_apart else cls.forward(FunctionCtx(), *args)
