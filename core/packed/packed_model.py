"""Have a model that runs packed be cast whole or left as it is, and know what it takes: :class:`PackedModel`.

``nn.Module.to`` goes module by module. Where a packed one refuses, those before it would be cast or moved already.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

from torch import Tensor, nn

from ecoflap.core.kernel.packed_module import Follower
from ecoflap.core.kernel.packed_parameters import PackedParameters
from ecoflap.core.packed.packing import ATTRIBUTE, Packing


class PackedModel(nn.Module):
    """Asks all its packed modules before anything is applied to one of its tensors.

    It is the first ancestor of a class that :func:`keep_packing` makes of a model's own, which goes by the same name:
    transformers writes that into a configuration.
    """

    packs: ClassVar[type[nn.Module]]
    """The class that it was made of."""

    @property
    def ecoflap_packing(self) -> Packing:
        """Say what of it is packed, and what that takes now: other bytes after a cast, or with other weights."""
        said: Packing = vars(self)[ATTRIBUTE]
        dense, packed = _taken(self)
        return replace(said, bytes_dense=dense, bytes_packed=packed)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and stored by the class that this was made of."""
        return _without_state, (self.packs,), self.__dict__

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedModel":
        for module in _followers(self):
            module.refuse(fn)
        super()._apply(fn, recurse)
        return self


def keep_packing(model: nn.Module, packing: Packing) -> None:
    """Put what is packed at ``model.ecoflap_packing``, and have a model be cast whole of which anything is."""
    packing.bytes_dense, packing.bytes_packed = _taken(model)
    setattr(model, ATTRIBUTE, packing)
    if packing.packed and not isinstance(model, PackedParameters):  # which asks itself first
        kind: Any = type(model)
        model.__class__ = _class_of(kind)


def _followers(model: nn.Module) -> Iterator[Follower]:
    return (module for module in model.modules() if isinstance(module, Follower))


def _taken(model: nn.Module) -> tuple[int, int]:
    """Give the bytes that packed weights would take dense, and those that they take; what is shared counts once."""
    pieces = {at: sizes for module in _followers(model) for at, sizes in module.taken().items()}
    return sum(dense for dense, _ in pieces.values()), sum(packed for _, packed in pieces.values())


@cache
def _class_of(kind: Any) -> type[nn.Module]:
    """Make the class of models of a kind that run packed."""
    same = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    made: type[nn.Module] = type(kind.__name__, (PackedModel, kind), {"packs": kind, **same})
    return made


def _without_state(kind: Any) -> nn.Module:
    made = _class_of(kind)
    return made.__new__(made)
