"""Types of torch's by the names that recipes and configurations have for them, and the other way round."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def dtype_name(dtype: object) -> str:
    """Name a type of torch's as recipes and configurations do: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def dtype_called(name: object) -> "torch.dtype | None":
    """Give the floating-point type of a name; None where no such type is called so, as none is ``auto`` or ``int8``.

    :param name: As recipes and configurations have it, with ``torch.`` before it or without.
    """
    import torch  # who only names a type need not wait for it

    found = getattr(torch, dtype_name(name), None)
    return found if isinstance(found, torch.dtype) and found.is_floating_point else None
