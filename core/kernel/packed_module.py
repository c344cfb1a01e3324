"""Stand in the place of an ``nn.Linear`` with its weights packed: :class:`PackedLinear`.

What it has in a state dict is what any module has that holds parameters packed: :class:`DenseState`.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import packed_rows as _rows  # noqa: F401 - registers the operator
from ecoflap.core.kernel import unpacked as _unpacked  # noqa: F401 - registers the operator
from ecoflap.core.kernel.arena import own_memory
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import cast, pack_dense, unpack
from ecoflap.core.kernel.order import Shape, shape_of
from ecoflap.core.kernel.packed_linear import multiplied
from ecoflap.core.kernel.packed_weight import PackedWeight

GIVEN = "the weights of this layer are packed: put an nn.Linear in its place, or give it others by load_state_dict"
DELETED = (
    "the {} is packed, and cannot be taken out, as a LoRA of peft's on an nn.MultiheadAttention does. Merge it into "
    "the dense model, which weights='dense' loads, prune that, and pack it."
)


class DenseState(nn.Module):
    """Has in its state dict, dense and under the names they had, the parameters that a module holds packed."""

    @abstractmethod
    def _dense_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Give the shape of each such parameter, by its name."""

    @abstractmethod
    def _held_in(self) -> Collection[str]:
        """Name the buffers that hold packed matrices."""

    @abstractmethod
    def _decoded(self, name: str) -> Float[Tensor, "*shape"]:
        """Give one as it is dense."""

    @abstractmethod
    def _pack(self, name: str, weight: Float[Tensor, "*shape"]) -> None:
        """Hold these numbers packed in the place of those that one has."""

    def __getstate__(self) -> dict[str, Any]:
        """Give what a pickle holds: each packed matrix with its own bytes, and not with all of the model's."""
        held = {name: own_memory(self.get_buffer(name)) for name in self._held_in()}
        return {**super().__getstate__(), "_buffers": {**self._buffers, **held}}

    def __deepcopy__(self, memo: dict[int, Any]) -> "DenseState":
        """Be copied as the tensors are: those of a model lie in one memory in its copy, too."""
        made = self.__copy__()
        memo[id(self)] = made
        made.__dict__.update(deepcopy(super().__getstate__(), memo))
        return made

    def __copy__(self) -> "DenseState":
        made = type(self).__new__(type(self))
        made.__dict__.update(super().__getstate__())  # without what torch has compiled, which is the original's
        return made

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name in self._dense_shapes():
            destination[f"{prefix}{name}"] = self._decoded(name)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {f"{prefix}{name}": (name, shape) for name, shape in self._dense_shapes().items()}
        others = {key: value for key, value in state_dict.items() if key not in own}
        error_msgs += _of_a_lora(prefix, others)
        for key, (name, shape) in own.items():
            if key not in state_dict:
                missing_keys.append(key)
            elif tuple(state_dict[key].shape) != shape:
                shapes = f"{tuple(state_dict[key].shape)} where it is {shape}"
                error_msgs.append(f"size mismatch for {key}: {shapes}.")
            elif state_dict[key].is_meta:
                error_msgs.append(f"{key} is on the meta device, and has no numbers to pack: read its file to the CPU.")
            else:
                self._pack(name, state_dict[key])
        arguments = local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(others, prefix, *arguments)


class PackedLinear(DenseState, nn.Linear):
    """Multiplies as the ``nn.Linear`` did whose weights it holds packed; they cannot be trained.

    It is an ``nn.Linear`` to whoever asks, as open_clip does before it calls one, but has no parameter ``weight``.
    ``weight`` stands for them and decodes them when it is used. A state dict has them dense, under the name they had.

    :param packed: The matrix in the kernel's order; often a piece of one memory for a whole model.
    """

    packed: Tensor

    def __init__(self, packed: UInt8[Tensor, "bytes"], bias: nn.Parameter | None = None) -> None:
        nn.Module.__init__(self)
        shape = shape_of(packed)
        self.in_features, self.out_features = shape.inputs, shape.outputs
        self.dtype, self.kept, self.values = shape.dtype, shape.kept, shape.values
        self.register_buffer("packed", packed, persistent=False)
        self.register_parameter("bias", bias)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if torch.is_autocast_enabled("cpu"):  # torch's own products cast what they read; the weights stay as they are
            x = x.to(self.dtype)
        # Asked for one by its name, a module takes half a microsecond. A bias may be a property: a parametrization's.
        packed: Any = self._buffers["packed"]
        own = self._parameters
        bias = own["bias"] if "bias" in own else self.bias  # noqa: SIM401 - .get would ask for the other each time
        return multiplied(x, packed, bias, self.out_features)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """Give what stands for the dense weights, and is decoded when it is used: writing to it is refused."""
        if torch.compiler.is_dynamo_compiling():  # it cannot follow how a stand-in is made
            dense: Tensor = torch.ops.ecoflap.unpacked(self.packed, self.out_features, self.in_features, self.dtype)
            return dense
        known = Shape(self.dtype, self.out_features, self.in_features, self.kept, self.values)
        return PackedWeight(self.packed, known)

    @weight.setter
    def weight(self, value: object) -> None:
        raise KernelError(GIVEN)

    @weight.deleter
    def weight(self) -> None:
        raise KernelError(DELETED.format("weight of this layer"))

    def extra_repr(self) -> str:
        share = 1 - self.kept / max(1, self.in_features * self.out_features)
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        values = "" if self.values == "exact" else f", {self.values}"
        return f"{sizes}, sparsity={share:.3f}, {dtype_name(self.dtype)}{values}"

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a parameter in the place of the packed weights."""
        if name == "weight":
            raise KernelError(GIVEN)
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        """Follow ``.to(dtype)``: the weights are decoded, cast and packed anew. ``.to(device)`` is refused.

        Whole numbers and their scales stay as they are, and stand for the other type.
        """
        dtype = followed(fn, self.dtype)
        if dtype != self.dtype:
            self.packed, self.dtype = cast(self.packed, dtype), dtype
        super()._apply(leaving(fn, [self.packed]), recurse)
        return self

    def _dense_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"weight": (self.out_features, self.in_features)}

    def _held_in(self) -> Collection[str]:
        return ("packed",)

    def _decoded(self, name: str) -> Float[Tensor, "out in"]:
        return unpack(self.packed)

    def _pack(self, name: str, weight: Float[Tensor, "out in"]) -> None:
        self.packed = pack_dense(weight.to(self.dtype), values=self.values)
        self.kept = shape_of(self.packed).kept


def _of_a_lora(prefix: str, state_dict: Mapping[str, Any]) -> list[str]:
    """Say of an adapter's weights that belong to packed ones, of which peft had made no layer, that none takes them."""
    parts = {key: key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)}
    lost = [key for key, part in parts.items() if part == "base_layer" or part.startswith("lora_")]
    said = "is packed, and takes no LoRA. Merge it into the model that weights='dense' loads, prune and pack that."
    return [f"{key}: {prefix.rstrip('.')} {said}" for key in lost[:1]]


def leaving(fn: Callable[[Tensor], Tensor], packed: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Make what ``nn.Module`` applies to its tensors leave packed ones: ``.type(dtype)`` would cast their bytes."""
    return lambda tensor: tensor if any(tensor is one for one in packed) else fn(tensor)


def followed(fn: Callable[[Tensor], Tensor], dtype: torch.dtype) -> torch.dtype:
    """Give the type that packed weights are to have after what ``nn.Module`` applies to its tensors.

    :raises KernelError: Where that is none that is multiplied packed, or they were to be on another device.
    """
    probe = fn(torch.empty(1, dtype=dtype))
    if probe.device.type != "cpu":
        lost = "the model has to be loaded again" if probe.is_meta else ".to('cpu') brings it back"
        raise KernelError(
            f"packed weights are multiplied on the CPU, and cannot be moved to {probe.device}. Load the model with "
            f"weights='dense' to run it there. What lies before them in the model was moved: {lost}."
        )
    if probe.dtype not in TYPES:
        # In a narrow model what a family computes in float32, as rotary frequencies, would be cast with the rest.
        back = f".to({dtype}) brings it back" if dtype == torch.float32 else "load the model again"
        raise KernelError(
            f"packed weights are {_listed()}, and not {probe.dtype}. Load the model with weights='dense' to have it in "
            f"that type. What lies before them in the model was cast: {back}."
        )
    return probe.dtype


def _listed() -> str:
    return ", ".join(map(dtype_name, TYPES))
