"""Have the attention of a decoder multiply at once the queries that share keys, where it says one token.

    softmax(q_h K_g' / √d) V_g  of the heads h of a group g   =   softmax(Q_g K_g' / √d) V_g,   Q_g = [q_h]_h

Heads of grouped-query attention (Ainslie et al., GQA, EMNLP 2023) share keys and values. Where each has one query,
those of a group are rows of one product. torch's product on a CPU takes them head by head, in bfloat16 some fifty
microseconds each with 480 keys, which is twelve times as long; transformers gives it rows only beside a mask.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.errors import ModelError

NAME = "ecoflap_grouped"
"""What transformers calls the attention."""


def group_attention(model: nn.Module) -> None:
    """Have a model of transformers on a CPU attend faster, in place, with weights that are packed or dense.

    It is for a decoder in which several heads share keys. Prompts, and what is not on a CPU, are attended to as before.
    Outputs are those of before but for roundings.

    :raises ModelError: Where it is no such model, or attends in another way than by torch's product (``sdpa``).
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "set_attn_implementation"):
        raise ModelError(f"{type(model).__name__} is no model of transformers 5 whose attention can be set")
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", 1)
    shared = getattr(text, "num_key_value_heads", None) or heads
    if heads == shared:
        raise ModelError(
            f"{type(model).__name__} has keys of its own for each of {heads} heads: none are to be grouped"
        )
    if text._attn_implementation == NAME:
        return
    if text._attn_implementation != "sdpa":
        can = getattr(model, "_supports_sdpa", True)
        way_out = "say model.set_attn_implementation('sdpa') before" if can else "and has no product of torch's instead"
        raise ModelError(f"{type(model).__name__} attends by {text._attn_implementation!r}: {way_out}")
    changed: Any = model
    changed.attention_known = _AttentionKnown()  # goes wherever the model is pickled to
    changed.set_attn_implementation(NAME)


class _AttentionKnown:
    """Makes the attention known to transformers, with the masks that ``sdpa`` has: also where it is unpickled.

    A process that is spawned with a model knows nothing of what was registered where the model was made.
    """

    def __init__(self) -> None:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)

    def __reduce__(self) -> tuple[type["_AttentionKnown"], tuple[()]]:
        return _AttentionKnown, ()


def attend(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch groups keys width"],
    value: Float[Tensor, "batch groups keys wide"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch queries heads wide"], None]:
    """Attend as transformers' ``sdpa`` does, whose arguments these are; one query a head goes by groups."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, queries, _ = query.shape
    groups = key.shape[1]
    is_plain = not dropout and all(others.get(name) is None for name in ("softcap", "position_bias", "s_aux"))
    if queries != 1 or heads == groups or query.device.type != "cpu" or not is_plain or not _is_of_all(attention_mask):
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
        return found, None
    rows = query.reshape(batch, groups, heads // groups, -1)
    found = torch.nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return found.reshape(batch, 1, heads, -1), None


def _is_of_all(mask: Tensor | None) -> bool:
    """Say whether a mask is the same for all heads, or there is none."""
    return mask is None or (mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2] == 1)
