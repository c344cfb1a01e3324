"""Have transformers make the masks of a model by broadcasting, as a graph needs it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any


@contextmanager
def broadcast_masks() -> Iterator[None]:
    """Make masks by broadcasting, for as long as this lasts, where transformers would map a function over places.

    It maps those that models of images put together themselves (Gemma 3), and neither a trace nor a graph of ONNX holds
    such a map. The functions compare places, so that the masks are equal. A version without them is left as it is.
    """
    import transformers

    masking: Any = getattr(transformers, "masking_utils", None)
    instead: dict[str, Any] = {"_vmap_expansion_sdpa": _broadcast, "TransformGetItemToIndex": nullcontext}
    before = {name: getattr(masking, name, None) for name in instead}
    known = hasattr(masking, "_non_vmap_expansion_sdpa") and None not in before.values()
    try:
        _set(masking, instead if known else {})
        yield
    finally:
        _set(masking, before if known else {})


def _set(module: Any, members: Mapping[str, Any]) -> None:
    for name, value in members.items():
        setattr(module, name, value)


def _broadcast(mask_function: Callable[..., Any]) -> Callable[..., Any]:
    from transformers.masking_utils import _non_vmap_expansion_sdpa

    return lambda *places: mask_function(*_non_vmap_expansion_sdpa(*places))
