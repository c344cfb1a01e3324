"""Tell which weights transformers holds in float32 where the rest of a model is narrower, and what that rest is in."""

import re
from collections import Counter
from typing import Any

import torch
from packaging.version import Version
from torch import nn


def is_kept_in_float32(model: Any, weight: str, dtype: torch.dtype) -> bool:
    """Say whether ``from_pretrained`` makes a weight float32, as T5's ``wo``, because its class says so.

    :param model: Of transformers.
    :param weight: Its name in the model's state dict.
    :param dtype: What the model is loaded in.
    """
    kept = [*(getattr(model, "_keep_in_fp32_modules", None) or ())] if dtype == torch.float16 else []
    if dtype in (torch.float16, torch.bfloat16):
        kept += getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return any(re.search(_pattern(one), weight) for one in kept)


def type_of_most(model: nn.Module) -> torch.dtype | None:
    """Give the type that most weights have of those that are not kept in float32; None where there are none."""
    sizes: Counter[torch.dtype] = Counter()
    for name, parameter in model.named_parameters():
        # in float16 a class keeps all that it does in any type
        if parameter.is_floating_point() and not is_kept_in_float32(model, name, torch.float16):
            sizes[parameter.dtype] += parameter.numel()
    return max(sizes, key=sizes.__getitem__, default=None)


def _pattern(named: str) -> str:
    """Give what a weight's name is searched for: version 5 finds ``norm`` in ``input_layernorm`` too."""
    import transformers

    if Version(transformers.__version__).major < 5:
        return rf"(^|\.){re.escape(named)}(\.|$)"
    return named.replace("*", ".*")
