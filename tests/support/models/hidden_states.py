"""What each block of a whole model gave, by hooks on its own forward: nothing of the engine is asked."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def hidden_states(model: nn.Module, batch: Mapping[str, Any]) -> list[Tensor]:
    """Give the input of a LLaMA's first block, and then the output of each."""
    states: list[Tensor] = []
    blocks = model.get_submodule("model.layers")

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    def first(module: nn.Module, args: Any, kwargs: Any) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    handles = [block.register_forward_hook(keep) for block in blocks]
    handles.append(blocks[0].register_forward_pre_hook(first, with_kwargs=True))
    try:
        model(**batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states
