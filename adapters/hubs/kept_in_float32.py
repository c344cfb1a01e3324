"""Tell which weights transformers holds in float32 where the rest of a model is narrower."""

import re
from typing import Any

import torch


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


def _pattern(named: str) -> str:
    """Give what a weight's name is searched for: version 5 finds ``norm`` in ``input_layernorm`` too."""
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        return rf"(^|\.){re.escape(named)}(\.|$)"
    return named.replace("*", ".*")
