"""Models that are given images in other forms than one picture each are watched on what they take."""

from typing import Any

import pytest
import torch
from pico_composites import PATCH, TEXT, TOWER, VISION
from pico_words import token

from ecoflap.adapters.generic.image_batches import labelled
from ecoflap.adapters.generic.image_text_to_text import ImageTextToTextAdapter
from ecoflap.adapters.generic.watching.examples import patches_of
from ecoflap.core.contracts.records import IMAGE

LLAMA = {"model_type": "llama", **TEXT}
SETTINGS: dict[str, dict[str, Any]] = {
    "Gemma4": {  # rows of patches with their places, and one keys and values for several layers
        "vision_config": {**TOWER, "patch_size": 16, "pooling_kernel_size": 3, "head_dim": 8, "num_key_value_heads": 4},
        "text_config": {
            **TEXT, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128,
            "global_head_dim": 8, "layer_types": ["full_attention", "full_attention"],
        },
        "audio_config": None, "image_token_id": token(0),
    },
    "VideoLlama3": {  # patches that are merged, by numbers that come with them
        "vision_config": {**TOWER, "patch_size": PATCH}, "text_config": {"model_type": "qwen2", **TEXT},
        "image_token_id": token(0), "video_token_id": token(1),
    },
    "DeepseekVL": {  # features are counted by the model inside
        "vision_config": {"model_type": "siglip_vision_model", **VISION}, "text_config": LLAMA,
        "image_token_id": token(0),
    },
}  # fmt: skip
"""By what their classes' names begin with."""


def weightless(name: str) -> Any:
    import transformers

    kind = getattr(transformers, f"{name}ForConditionalGeneration", None)
    if kind is None:
        pytest.skip(f"this version of transformers has no {name}")
    with torch.device("meta"):
        return kind(getattr(transformers, f"{name}Config")(**SETTINGS[name]))


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_both_towers_are_found(name: str):
    towers = ImageTextToTextAdapter().towers(weightless(name))
    assert [(tower.name, len(tower.blocks)) for tower in towers if not tower.outside] == [
        ("vision", 2),
        ("language", 2),
    ]


def test_patches_with_a_place_are_told_from_padding():
    model, adapter = weightless("Gemma4"), ImageTextToTextAdapter()
    places = torch.tensor([[[0, 0], [1, 0]], [[0, 0], [-1, -1]]])
    told = adapter.tokens(model, {"input_ids": torch.ones(2, 5), "image_position_ids": places}, "vision")
    assert told.tolist() == [[IMAGE, IMAGE], [IMAGE, 0]]
    vision = next(tower for tower in adapter.towers(model) if tower.name == "vision")
    assert {layer.layout for block in vision.blocks for layer in adapter.layers(block)} == {"batch token"}


def test_patches_of_nothing_but_zeros_are_padding_and_a_mask_of_tiles_is_of_no_patches():
    patches = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 2.0]]])
    told = ImageTextToTextAdapter().tokens(torch.nn.Linear(1, 1), {"flattened_patches": patches}, "vision")
    assert told.tolist() == [[IMAGE, 0], [IMAGE, IMAGE]]
    mask = torch.ones(2, 1, dtype=torch.int64)
    assert patches_of({"pixel_values": torch.ones(2, 1, 3, 4, 4), "pixel_attention_mask": mask}) is None
    assert patches_of({"pixel_values": torch.ones(2, 1, 4), "pixel_attention_mask": mask}) is not None


def test_what_a_processor_puts_behind_a_text_is_not_said():
    ids = torch.tensor([[5, 7, 8, 1, 0], [7, 8, 7, 8, 0], [5, 6, 8, 1, 0]])
    labels = labelled(ids, (ids > 0).long(), [(7, 8)] * 3)
    assert labels.tolist() == [[-100, 7, 8, -100, -100], [-100, -100, 7, 8, -100], [-100, -100, 8, 1, -100]]
