"""Have a model that runs packed be cast whole or left as it is: :class:`PackedModel`.

``nn.Module.to`` goes module by module. Where a packed one refuses, those before it would be cast or moved already.
"""

from collections.abc import Callable
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and stored by the class that this was made of."""
        return _without_state, (self.packs,), self.__dict__

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedModel":
        for module in self.modules():
            if isinstance(module, Follower):
                module.refuse(fn)
        super()._apply(fn, recurse)
        return self


def keep_packing(model: nn.Module, packing: Packing) -> None:
    """Put what is packed at ``model.ecoflap_packing``, and have a model be cast whole of which anything is."""
    setattr(model, ATTRIBUTE, packing)
    if packing.packed and not isinstance(model, PackedParameters):  # which asks itself first
        kind: Any = type(model)
        model.__class__ = _class_of(kind)


@cache
def _class_of(kind: Any) -> type[nn.Module]:
    """Make the class of models of a kind that run packed."""
    same = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    made: type[nn.Module] = type(kind.__name__, (PackedModel, kind), {"packs": kind, **same})
    return made


def _without_state(kind: Any) -> nn.Module:
    made = _class_of(kind)
    return made.__new__(made)
