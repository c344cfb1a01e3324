"""Have torch name the classes of one file as if nothing had been traced in this process before.

A trace makes a class of each module, and numbers it (``___torch_mangle_93``) where this process has one of that name.
By these numbers the second file of a process differed from the first in bytes, and a sweep's from a run's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_OF_THE_PROCESS = "_python_cu"
"""What torch has all classes of a process in. Its tracer takes another as an argument, the rest of it looks here."""


@contextmanager
def named_alone() -> Iterator[dict[str, Any]]:
    """Trace and script inside among no other classes.

    :return: What ``torch.jit.trace`` has to be given besides. It is empty, and numbers go on, where a version of torch
        keeps its classes elsewhere.
    """
    from torch.jit import _recursive, _state

    holders: tuple[Any, ...] = (_state, _recursive)
    if not all(hasattr(one, _OF_THE_PROCESS) for one in holders) or not hasattr(_recursive, "ConcreteTypeStore"):
        yield {}
        return
    before = [getattr(one, _OF_THE_PROCESS) for one in holders]
    types = _recursive.concrete_type_store
    unit = torch._C.CompilationUnit()
    try:
        for one in holders:
            setattr(one, _OF_THE_PROCESS, unit)
        _recursive.concrete_type_store = _recursive.ConcreteTypeStore()
        yield {"_compilation_unit": unit}
    finally:
        for one, unit_before in zip(holders, before, strict=True):
            setattr(one, _OF_THE_PROCESS, unit_before)
        _recursive.concrete_type_store = types
