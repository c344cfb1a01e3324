"""Texts by the language model in LAVIS' BLIP-2, from the places of an image and a prompt, as LAVIS itself has it do."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ecoflap.adapters.shared.generation import generated, gone_on, padded_left, without_ends
from ecoflap.adapters.shared.matrices import part
from ecoflap.adapters.shared.rows import padded_rows
from ecoflap.adapters.views.blip2 import LavisQueries
from ecoflap.core.contracts.abilities import Generation, Said


def lavis_says(
    model: nn.Module,
    kind: str,
    image: Float[Tensor, "images channels height width"],
    which: Int64[Tensor, " samples"],
    prompts: Sequence[str],
    generation: Generation,
) -> list[Said]:
    """A text for each prompt.

    :param kind: ``t5`` or ``opt``.
    :param which: The image of each prompt.
    """
    text, tokenizer = part(model, f"{kind}_model"), part(model, f"{kind}_tokenizer")
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    ids, mask = (each.to(image.device) for each in (padded_rows(rows) if kind == "t5" else padded_left(rows)))
    model.eval()
    with torch.no_grad(), part(model, "maybe_autocast")():
        (queries,) = LavisQueries(model, part(model, f"{kind}_proj"), unit=False)(image)
        seen = queries[which.to(image.device)]
        mask = torch.cat([mask.new_ones(seen.shape[:2]), mask], 1)
        if kind == "t5":
            embeds = torch.cat([seen, part(text, "shared")(ids).to(seen)], 1)
            return generated(text, tokenizer, {"inputs_embeds": embeds, "attention_mask": mask}, generation, 1)
        # LAVIS' own OPT puts the image before its text, and is given it once for each beam
        seen = seen.repeat_interleave(generation.num_beams, 0)
        inputs = {"input_ids": ids, "query_embeds": seen, "attention_mask": mask}
        return generated(text, tokenizer, inputs, generation, ids.shape[1], [part(model, "eos_token_id")])


def lavis_tokens_of(kind: str, tokenizer: Any, text: str) -> tuple[int, ...]:
    """How either language model would say it after a prompt."""
    ends = [tokenizer.eos_token_id]
    if kind == "t5":
        return tuple(without_ends(tokenizer(text).input_ids, ends))
    return gone_on(tokenizer(":").input_ids, tokenizer(f": {text}").input_ids, ends)
