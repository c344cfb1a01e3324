"""A GPU that is pretended: tensors on it lie in main memory, and refuse to meet those of the CPU, as CUDA's do.

It finds what was left on the other device, and goes the ways that are taken where there is a GPU. What is computed is
computed by the CPU, so of CUDA's own numbers, of its memory and of its speed it tells nothing.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

_device_constructors()  # it lists functions when it is first asked: those of torch, and not those in their place

GPU = torch.device("cuda", 0)
ATEN = torch.ops.aten
BETWEEN_DEVICES = (ATEN.copy_.default, ATEN._to_copy.default)
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)
SAID = {
    "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "set_device": None,
    "_lazy_init": None, "synchronize": None, "empty_cache": None, "manual_seed": None, "manual_seed_all": None,
    "mem_get_info": (70 << 30, 80 << 30), "memory_allocated": 1 << 20, "memory_reserved": 1 << 20,
    "max_memory_allocated": 1 << 20, "reset_peak_memory_stats": None, "get_device_name": "pretended",
    "get_device_capability": (9, 0), "is_bf16_supported": True,
    "get_device_properties": SimpleNamespace(name="pretended", major=9, minor=0, total_memory=80 << 30),
}  # fmt: skip
"""What functions of ``torch.cuda`` give."""


class OnGpu(Tensor):
    """A tensor on the GPU.

    :ivar held: The same in main memory. Memory that two tensors share on the GPU, theirs share there.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=GPU
        )
        made.held = held
        return made

    def __repr__(self, **keys: Any) -> str:
        return f"{self.held!r} on the GPU"

    def numpy(self, **keys: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __array__(self, *args: Any, **keys: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let ``cuda`` be a device: what is made or moved there, in any thread that begins meanwhile, is on it."""
    with ExitStack() as stack:
        for owner, name, said in replaced():
            stack.enter_context(mock.patch.object(owner, name, said))
        stack.enter_context(Operators())
        yield


def replaced() -> Iterator[tuple[Any, str, Any]]:
    """Give what torch is to say, and what does not come by as an operator: makers of tensors, data, and memory."""
    for name, said in SAID.items():
        yield torch.cuda, name, lambda *args, said=said, **keys: said
    yield torch.cuda, "default_generators", ()
    for name in ("tensor", "as_tensor", "asarray"):
        yield torch, name, made_by(getattr(torch, name))
    own = Tensor.new_tensor
    yield Tensor, "new_tensor", lambda self, *args, **keys: own(held(self), *args, **keys).to(self.device)
    for name in ("data_ptr", "untyped_storage"):
        yield Tensor, name, of_held(getattr(Tensor, name))
    yield Tensor, "data", property(data_of, set_data)
    yield Tensor, "__deepcopy__", lambda self, memo, own=Tensor.__deepcopy__: copied(self, memo, own)
    run = threading.Thread.run
    yield threading.Thread, "run", lambda thread: run_with_gpu(thread, run)


def run_with_gpu(thread: threading.Thread, run: Any) -> None:
    with Operators():
        run(thread)


def made_by(own: Any) -> Any:
    """Give what makes a tensor of what is none: in main memory, and then moved."""

    def make(data: Any, **keys: Any) -> Tensor:
        device = keys.pop("device", None)
        made: Tensor = own(data, **keys)
        return made if device is None else made.to(device)

    return make


def of_held(own: Any) -> Any:
    return lambda tensor: own(held(tensor))


DATA = Tensor.data


def data_of(tensor: Tensor) -> Tensor:
    return OnGpu(tensor.held.detach()) if is_there(tensor) else DATA.__get__(tensor)


def set_data(tensor: Tensor, data: Tensor) -> None:
    """Set it. A parameter that is of the CPU's class is on the GPU from then on, or no longer."""
    DATA.__set__(tensor, data)
    if is_there(data):
        tensor.held = data.held
    elif is_there(tensor):
        del tensor.held


def copied(tensor: Tensor, memo: dict[int, Any], own: Any) -> Tensor:
    if not is_there(tensor):
        return own(tensor, memo)
    made: Tensor = OnGpu(tensor.held.detach().clone())
    memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return memo[id(tensor)]


def is_there(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "held")


def held(value: Any) -> Any:
    return value.held if is_there(value) else value


def is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def computed(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Compute an operator in main memory, and give what is on the GPU as that."""
    refuse_to_meet(func, args, kwargs)
    device = kwargs.get("device")
    is_of_gpu = is_gpu(device) if device is not None else any(map(is_there, tree_leaves((args, kwargs))))
    here = {**kwargs, "device": torch.device("cpu")} if is_gpu(device) else dict(kwargs)
    if here.get("pin_memory"):
        here["pin_memory"] = False
    held_args, held_kwargs = tree_map(held, (args, here))
    if func is ATEN.histc.default and not held_args[0].is_floating_point():  # of which a CPU has none
        held_args = (held_args[0].double(), *held_args[1:])
    result = func(*held_args, **held_kwargs)
    if func is ATEN.copy_.default:
        return args[0]
    if not is_of_gpu:
        return result
    wrapped = tree_map_only(Tensor, OnGpu, result)
    has_tensors_there = any(map(is_there, args)) or "out" in kwargs
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if has_tensors_there else wrapped


def refuse_to_meet(func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse tensors of both devices, but for numbers, copies and indices.

    :raises RuntimeError: As torch words it.
    """
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    others = [tensor for tensor in tensors if not is_there(tensor)]
    if func in BETWEEN_DEVICES or not others or len(others) == len(tensors):
        return
    if func in INDEXED and is_there(args[0]):
        others = [value for value in args[2:3] if isinstance(value, Tensor) and not is_there(value)]
    if any(tensor.dim() for tensor in others):
        said = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
        raise RuntimeError(f"{said} ({func})")
