"""Vision transformers of transformers against their own losses, for every type the adapter claims."""

from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
from column_norms import column_norms
from pico_vit import BASE, CLASSIFIER, MODELS, adapter, build, image_processor, labelled, pictures
from torch import nn

from ecoflap import Replay
from ecoflap.adapters.vit import FAMILIES, VitAdapter
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.source import in_memory, open_source

HEADLESS = {"dinov3_vit", "pixio"}


def built(family: str, kind: str) -> Any:
    if find_spec(f"{MODELS}.{family.replace('data2vec-vision', 'data2vec')}") is None:
        pytest.skip(f"this version of transformers has no {family}")
    if kind == CLASSIFIER and family == "deit":
        return build(family, "DeiTForImageClassification")
    if kind == CLASSIFIER and family in HEADLESS:
        pytest.skip("it has no classifier")
    return build(family, kind)


@pytest.mark.parametrize(("family", "kind"), sorted(product(FAMILIES, (BASE, CLASSIFIER))))
def test_every_matrix_of_every_type_is_seen(family: str, kind: str):
    model, made = built(family, kind), adapter()
    assert made.matches(in_memory(model))
    samples = list(labelled(4))
    batches = [made.collate(model, samples[:3]), made.collate(model, samples[3:])]
    replay = Replay(model, made, batches)
    with torch.no_grad():
        expected = torch.stack([made.loss(model, batch).double() for batch in batches])
    inside = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside -= {f"{tower.name}.weight" for tower in made.towers(model) if tower.outside}
    assert {layer.name for _, layer in replay.anatomy.layers()} == inside
    assert len(replay.blocks) == 2
    for index in range(2):
        assert torch.equal(replay.loss(index), expected)
        for name, statistic in column_norms(replay, index).items():
            assert statistic.tokens == made.tokens(model, batches[0], "vision").shape[1] * 4, name
        replay.advance(index)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_cross_entropy_is_transformers_own(family: str):
    model, made = built(family, CLASSIFIER), adapter()
    batch = made.collate(model, labelled(3))
    with torch.no_grad():
        theirs = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
        torch.testing.assert_close(made.loss(model, batch).float(), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("family", "kind"), sorted(product(FAMILIES, (BASE, CLASSIFIER))))
def test_without_labels_the_loss_is_a_fixed_projection_with_a_gradient(family: str, kind: str):
    model, made = built(family, kind), adapter()
    batch = made.collate(model, pictures(3))
    made.loss(model, batch).backward()
    for tower in made.towers(model):
        for block in tower.blocks:
            for layer in made.layers(block):
                assert layer.weight.grad is not None, layer.name
                assert float(layer.weight.grad.norm()) > 1e-7, layer.name
    with torch.no_grad():
        alone = [made.loss(model, made.collate(model, [sample])) for sample in pictures(3)]
        torch.testing.assert_close(made.loss(model, batch), torch.stack(alone).mean(), rtol=0, atol=1e-6)


def test_the_projection_by_hand():
    model, made = build("vit"), adapter()
    batch = made.collate(model, pictures(2))
    with torch.no_grad():
        features = build("vit").double()(pixel_values=batch["pixel_values"].double()).pooler_output
    terms = [
        feature @ torch.randn(len(feature), generator=torch.Generator().manual_seed(_seed(int(seed)))).double()
        for feature, seed in zip(features / features.norm(dim=-1, keepdim=True), batch["seeds"], strict=True)
    ]
    assert float(made.loss(model, batch).detach()) == pytest.approx(float(sum(terms)) / 2, rel=1e-5)


def _seed(seed: int) -> int:
    from hashlib import sha256

    return int.from_bytes(sha256(str(seed).encode()).digest()[:8], "little") >> 1


def test_a_model_without_head_reads_no_labels():
    model, made = build("dinov2"), adapter()
    with torch.no_grad():
        with_labels, without = (
            made.loss(model, made.collate(model, labelled(2))),
            made.loss(model, made.collate(model, pictures(2))),
        )
    assert torch.equal(with_labels, without)


def test_a_label_the_head_does_not_know_is_refused():
    model, made = build("vit", CLASSIFIER, num_labels=2), adapter()
    with pytest.raises(DataError, match=r"labels \[2, 3\], and the model knows classes 0 to 1"):
        made.loss(model, made.collate(model, labelled(4)))


def test_images_of_another_size_are_refused():
    from transformers import ViTImageProcessor

    model, made = build("vit"), adapter()
    made.processor = ViTImageProcessor(size={"height": 35, "width": 35})
    with pytest.raises(DataError, match=r"no images of 35×35"):
        made.loss(model, made.collate(model, pictures(1)))


@pytest.mark.parametrize("config", [
    {}, {"model_type": "clip_vision_model"}, {"model_type": "vit_mae", "architectures": ["ViTMAEModel"]},
    {"model_type": "vit", "architectures": ["ViTForMaskedImageModeling"]}, {"model_type": "bert"},
])  # fmt: skip
def test_does_not_claim_others(config: dict[str, Any]):
    assert not VitAdapter().matches(Source("x", config=config))


def test_claims_a_model_in_memory_by_its_structure():
    from transformers import BertConfig, BertModel, ViTConfig, ViTForMaskedImageModeling

    assert VitAdapter().matches(Source("mine", model=build("dinov2")))
    assert not VitAdapter().matches(Source("mine", model=nn.Linear(2, 2)))
    small: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    assert not VitAdapter().matches(Source("mine", model=BertModel(BertConfig(**small))))
    masked = ViTForMaskedImageModeling(ViTConfig(**small, image_size=28, patch_size=7, encoder_stride=7))
    assert not VitAdapter().matches(in_memory(masked))


def test_says_what_it_expects_of_a_model_it_does_not_know():
    with pytest.raises(ModelError, match="Linear is not laid out like a vision transformer"):
        adapter().towers(nn.Linear(2, 2))


def test_loads_a_folder_with_its_processor(tmp_path: Any):
    made = adapter()
    made.save(build("vit", CLASSIFIER), tmp_path)
    source = open_source(str(tmp_path), tmp_path)
    read = VitAdapter()
    assert read.matches(source)
    weightless = read.load(source, None, "meta")
    assert read.processor is None
    assert [tower.name for tower in read.towers(weightless)] == ["vision", "classifier"]
    model = read.load(source, None, "cpu")
    assert type(model).__name__ == "ViTForImageClassification"
    assert read.max_length(model) is None
    expected = image_processor()(images=pictures(1)[0].image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(read.collate(model, pictures(1))["pixel_values"], expected)
    (tmp_path / "preprocessor_config.json").unlink()
    read.load(open_source(str(tmp_path), tmp_path), None, "cpu")
    with pytest.raises(DataError, match="needs an image processor"):
        read.collate(model, pictures(1))


def test_a_checkpoint_without_a_pooler(tmp_path: Any):
    """Self-supervised ones have none; transformers would draw one at random."""
    from transformers import ViTModel

    model = build("vit", BASE)
    bare = ViTModel(model.config, add_pooling_layer=False)
    bare.load_state_dict({name: w for name, w in model.state_dict().items() if not name.startswith("pooler.")})
    bare.save_pretrained(tmp_path)
    read = VitAdapter().load(open_source(str(tmp_path), tmp_path), None, "cpu")
    assert [tower.name for tower in VitAdapter().towers(read)] == ["vision"]
    torch.testing.assert_close(read.state_dict(), bare.state_dict(), rtol=0, atol=0)
