"""Views of models that were taken apart by watching give what the whole model does."""

from typing import Any

import pytest
import torch
from table import GENERIC_ROWS
from torch import Tensor


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "smolvlm", "paligemma"])
def test_language_gives_the_logits_of_the_vectors_that_images_became(name: str):
    row = GENERIC_ROWS[name]
    model, adapter = row.build(), row.adapter()
    (view,) = adapter.export_views(model)  # type: ignore[attr-defined]
    seen: list[Tensor] = []
    inner: Any = next(m for path, m in model.named_modules() if path.endswith(("language_model", "text_model")))
    inner.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["inputs_embeds"]), with_kwargs=True)
    words = torch.full((2, 6), 12)
    with torch.no_grad():
        expected = model(input_ids=words, attention_mask=torch.ones_like(words), use_cache=False).logits
        (found,) = view.module(seen[0], torch.ones_like(words))
    # Gemma scales embeddings of words itself, which vectors that are given have been through
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not any("vision" in path or "visual" in path for path, _ in view.module.named_parameters())
    mine = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in mine for parameter in view.module.parameters())


@pytest.mark.parametrize("name", ["mllama", "kosmos2", "instructblip", "florence2"])
def test_there_is_none_of_a_model_that_reads_images_in_another_way(name: str):
    row = GENERIC_ROWS[name]
    assert list(row.adapter().export_views(row.build())) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "mixtral", "gpt_oss"])
def test_decoder_gives_the_models_logits_its_experts_among_them(name: str):
    row = GENERIC_ROWS[name]
    model = row.build()
    (view,) = row.adapter().export_views(model)  # type: ignore[attr-defined]
    with torch.no_grad():
        for inputs in (view.inputs, view.other):
            (found,) = view.module(*inputs.values())
            expected = model(**inputs, use_cache=False).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
