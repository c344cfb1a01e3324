"""Have the language model in LAVIS' BLIP-2 make texts of an image and a prompt, as LAVIS itself does."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ecoflap.adapters.shared.generation import generated, gone_on, padded_left, without_ends
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.shared.texts import padded_rows
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
    """Make a text for each prompt.

    :param kind: ``t5`` or ``opt``.
    :param which: Which of the images each prompt is about.
    """
    text, tokenizer = member(model, f"{kind}_model"), member(model, f"{kind}_tokenizer")
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    ids, mask = (each.to(image.device) for each in (padded_rows(rows) if kind == "t5" else padded_left(rows)))
    model.eval()
    with torch.no_grad(), member(model, "maybe_autocast")():
        (queries,) = LavisQueries(model, member(model, f"{kind}_proj", nn.Module), is_normalised=False)(image)
        seen = queries[which.to(image.device)]
        mask = torch.cat([mask.new_ones(seen.shape[:2]), mask], 1)
        if kind == "t5":
            embeds = torch.cat([seen, member(text, "shared")(ids).to(seen)], 1)
            return generated(text, tokenizer, {"inputs_embeds": embeds, "attention_mask": mask}, generation, 1)
        # LAVIS' own OPT puts the image before its text, and is given it once for each beam
        seen = seen.repeat_interleave(generation.num_beams, 0)
        inputs = {"input_ids": ids, "query_embeds": seen, "attention_mask": mask}
        return generated(text, tokenizer, inputs, generation, ids.shape[1], [member(model, "eos_token_id", int)])


def lavis_tokens_of(kind: str, tokenizer: Any, text: str) -> tuple[int, ...]:
    """Give the tokens by which either language model would say a text after a prompt."""
    ends = [tokenizer.eos_token_id]
    if kind == "t5":
        return tuple(without_ends(tokenizer(text).input_ids, ends))
    return gone_on(tokenizer(":").input_ids, tokenizer(f": {text}").input_ids, ends)
