"""Try without weights and without computing whether a view can become a graph: a graph has no numbers in Python."""

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from ecoflap.adapters.views.impossible import COMPLEX
from ecoflap.core.contracts.records import View
from ecoflap.core.errors import one_line

TORCH = str(Path(torch.__file__).parent)
OURS = str(Path(__file__).parents[1])


class SeesComplex(TorchFunctionMode):
    """Notes whether complex numbers are computed with."""

    found = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.found |= isinstance(made, Tensor) and made.is_complex()
        return made


def why_no_graph(view: View, exporter: str) -> str | None:
    """Say what of a view looks at the numbers of an input in Python; None where it runs without any.

    It runs on tensors without content, as it does while torch exports it. That takes a second for thirty blocks of any
    width, where an export takes twenty. A trace would go on without a word, and be right for the numbers it was made
    with.

    :param exporter: Whose files it would be in: ONNX has no complex numbers either.
    """
    seen = SeesComplex()
    try:
        with seen:
            ran_empty(view.module, *view.inputs.values())
    except Exception as error:  # whatever a model does that cannot be done without numbers
        return _sentence(error, {inspect.getfile(type(module)) for module in view.module.modules()})
    return COMPLEX if seen.found and exporter == "onnx" else None


def ran_empty(module: nn.Module, *inputs: Tensor) -> Any:
    """Run a module on tensors that have a shape and no content, and give what it makes of them."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.no_grad():
        weights = {name: _empty(tensor) for name, tensor in _tensors_of(module).items()}
        return functional_call(module, weights, tuple(_empty(tensor) for tensor in inputs))


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _sentence(error: Exception, files: set[str]) -> str:
    """Say where it was, by the model's own code.

    :param files: Those with the code of a view's modules.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in files and not frame.filename.startswith((TORCH, OURS))]
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].line})" if own else "its code"
    if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__:
        return f"{where} looks at numbers of an input in Python, which torch cannot put into a graph"
    told = one_line(error)[:200]
    return f"{where} cannot run without numbers: {type(error).__name__}: {told}".rstrip(".")
