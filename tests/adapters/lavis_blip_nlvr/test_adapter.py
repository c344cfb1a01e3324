"""BLIP on NLVR2 of salesforce-lavis: its own loss, what reads which image, its checkpoints, a run on NLVR2's files."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ecoflap
from ecoflap import Gram, Replay
from ecoflap.adapters.lavis_blip_nlvr.adapter import LavisBlipNlvrAdapter
from ecoflap.core.cli.plan_report import prepared_tables
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source
from ecoflap.core.preparing.prepare import DataNotReady, prepare
from ecoflap.core.recipe.load import load_recipe
from ecoflap.core.registry.adapter_for import adapter_for

pytest.importorskip("lavis", reason="pip install 'ecoflap[lavis]' in an environment of its own")

import pico_lavis as pico

NLVR = "lavis:blip_nlvr/nlvr"


@pytest.fixture
def adapter() -> LavisBlipNlvrAdapter:
    made: LavisBlipNlvrAdapter = pico.with_processor(LavisBlipNlvrAdapter())
    return made


def alone(model: Any, sample: Sample, processor: Any) -> Tensor:
    """The logits of one sample by the model's parts: an image at a time, and a sentence without padding."""
    first, second = (model.visual_encoder.forward_features(processor(image)[None].double()) for image in sample.images)
    ids = model.tokenizer(sample.text, return_tensors="pt").input_ids
    ids[:, 0] = model.tokenizer.enc_token_id
    real = [torch.ones(one.shape[:2], dtype=torch.long) for one in (first, second)]
    read = model.text_encoder(
        ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=[first, second], encoder_attention_mask=real
    )
    told: Tensor = model.cls_head(read.last_hidden_state[:, 0])[0]
    return told


def test_claims_its_own_and_no_other_of_lavis(monkeypatch: pytest.MonkeyPatch):
    adapter = adapter_for(in_memory(pico.nlvr()), ecoflap.load_registry())
    assert isinstance(adapter, LavisBlipNlvrAdapter)
    assert not adapter.matches(in_memory(pico.eva()))
    monkeypatch.setitem(sys.modules, "lavis", None)
    assert adapter.matches(Source(NLVR))
    assert adapter.matches(Source("./model", config={"library": "lavis", "name": "blip_nlvr"}))
    assert not adapter.matches(Source("./model", config={"library": "lavis", "name": "blip2_t5"}))
    assert not adapter.matches(Source("lavis:blip_vqa/vqav2"))
    with pytest.raises(ModelError, match=r"cannot be imported .*ecoflap\[lavis\].*Python 3\.11"):
        adapter.load(Source(NLVR), None, "cpu")


def test_loss_and_logits_are_those_of_lavis_and_of_each_sample_alone(adapter: LavisBlipNlvrAdapter):
    model, samples = pico.nlvr().double(), pico.pairs(3)
    batch = adapter.collate(model, samples)
    own = {**batch, "image0": batch["image0"].double(), "image1": batch["image1"].double()}
    with torch.no_grad():
        assert torch.equal(adapter.logits(model, samples), model.predict(own)["predictions"])
        by_hand = torch.stack([alone(model, sample, adapter.processor) for sample in samples])
        torch.testing.assert_close(adapter.logits(model, samples), by_hand, rtol=1e-9, atol=1e-9)
        loss = adapter.loss(model, batch)
        torch.testing.assert_close(loss, model(own)["loss"], rtol=1e-6, atol=0)
    terms = [-logits.log_softmax(0)[sample.label] for logits, sample in zip(by_hand, samples, strict=True)]
    torch.testing.assert_close(loss, sum(terms) / 3, rtol=1e-6, atol=0)


def test_which_image_is_the_first_matters(adapter: LavisBlipNlvrAdapter):
    model, (sample,) = pico.nlvr(), pico.pairs(1)
    turned = Sample(images=sample.images[::-1], text=sample.text, label=sample.label)
    with torch.no_grad():
        there, back = (adapter.logits(model, [one]) for one in (sample, turned))
    assert (there - back).abs().max() > 1e-6


def test_sentences_are_written_as_lavis_writes_them(adapter: LavisBlipNlvrAdapter):
    (sample,) = pico.pairs(1)
    said = Sample(images=sample.images, text='The "Dog" is RED;  it is.', label=1)
    long = Sample(images=sample.images, text=" ".join(["a"] * 60), label=0)
    batch = adapter.collate(pico.nlvr(), [said, long])
    assert batch["text_input"] == ["the dog is red it is", " ".join(["a"] * 50)]
    assert batch["label"].tolist() == [1, 0]


def test_the_layers_are_all_matrices_of_its_blocks(adapter: LavisBlipNlvrAdapter):
    model = pico.nlvr()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    names = {block.name: [one.name.removeprefix(f"{block.name}.").removesuffix(".weight") for one in anatomy.layers_of[
        block.name]] for block in anatomy.blocks}  # fmt: skip
    assert names["visual_encoder.blocks.1"] == ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    halves = [f"crossattention.self{half}.{name}" for half in (0, 1) for name in ("query", "key", "value")]
    begins = [*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense", *halves]
    ends = ["intermediate.dense", "output.dense"]
    merged = [f"crossattention.output.{name}" for name in ("dense0", "dense1", "merge_layer")]
    assert names["text_encoder.encoder.layer.0"] == [*begins, *merged[:2], *ends]
    assert names["text_encoder.encoder.layer.6"] == [*begins, *merged, *ends]
    assert len(names) == 2 + 7
    assert [tower.name for tower in adapter.towers(model)] == ["vision", "text", "cls_head.0", "cls_head.2"]
    assert adapter.max_length(model) == pico.LONGEST


def test_each_half_of_cross_attention_sees_its_own_images(adapter: LavisBlipNlvrAdapter):
    model, samples = pico.nlvr(), pico.pairs(3)
    replay = Replay(model, adapter, [adapter.collate(model, samples)])
    first_text = next(number for number, block in enumerate(replay.blocks) if block.tower == "text")
    for number in range(first_text):
        replay.advance(number)
    seen = replay.run(first_text, (Gram,))
    with torch.no_grad():
        for half in (0, 1):
            images = torch.stack([adapter.processor(sample.images[half]) for sample in samples])
            rows = model.visual_encoder.forward_features(images).double().flatten(0, 1)
            for name in ("key", "value"):
                layer = f"text_encoder.encoder.layer.0.crossattention.self{half}.{name}.weight"
                found = seen[layer][Gram].matrix.double()
                torch.testing.assert_close(found, rows.T @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (Sample(text="a dog", label=1), "sample 0 of a batch has 0 images and a sentence.*image_pair"),
        (Sample(images=pico.pairs(1)[0].images[:1], text="a dog", label=1), "has 1 images and a sentence"),
        (Sample(images=pico.pairs(1)[0].images, label=1), "has 2 images and no sentence"),
        (Sample(images=pico.pairs(1)[0].images, text="a dog"), "sample 0 of a batch has no label"),
    ],
)
def test_samples_it_cannot_use(sample: Sample, told: str, adapter: LavisBlipNlvrAdapter):
    with pytest.raises(DataError, match=told):
        adapter.collate(pico.nlvr(), [sample])


def test_other_models_say_that_pairs_are_no_single_images(adapter: LavisBlipNlvrAdapter):
    with pytest.raises(DataError, match=r"2 of 2 samples have several\. Calibrate it on a dataset of single images\."):
        pico.adapter().collate(pico.model("t5"), pico.pairs(2))
    with pytest.raises(DataError, match=r"give ecoflap\.run a processor"):
        LavisBlipNlvrAdapter().collate(pico.nlvr(), pico.pairs(1))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """What was fetched by LAVIS, whose model and configuration are the pico's here."""
    from lavis import models
    from lavis.models.blip_models.blip import BlipBase

    asked: list[tuple[str, str]] = []
    small = pico.nlvr()

    def load(name: str, kind: str, is_eval: bool, device: str) -> tuple[Any, Any, Any]:
        asked.append((name, kind))
        return pico.nlvr(), {"eval": pico.with_processor(LavisBlipNlvrAdapter()).processor}, {}

    def vision(cfg: Any) -> nn.Module:
        assert cfg.image_size == 384
        encoder: nn.Module = pico.nlvr(seed=3).visual_encoder
        return encoder

    monkeypatch.setattr(models, "load_model_and_preprocess", load)
    monkeypatch.setattr(models.VisionTransformerEncoder, "from_config", vision)
    monkeypatch.setattr(models.blip_models.blip_nlvr, "get_abs_path", lambda name: str(tmp_path / "bert.json"))
    monkeypatch.setattr(BlipBase, "init_tokenizer", classmethod(lambda cls: small.init_tokenizer()))
    (tmp_path / "bert.json").write_text(small.text_encoder.config.to_json_string())
    return asked


def test_what_is_planned_is_built_by_its_configuration_and_what_is_saved_read_into_it(
    fetched: list[tuple[str, str]], tmp_path: Path
):
    from lavis.models import BlipNLVR

    adapter = LavisBlipNlvrAdapter()
    source = open_source(NLVR, Path())
    planned = adapter.load(source, None, "meta")
    assert all(tensor.is_meta for tensor in (*planned.parameters(), *planned.buffers()))
    assert (fetched, source.loaded, adapter.processor) == ([], {}, None)
    model = adapter.load(source, torch.bfloat16, "cpu")
    assert fetched == [("blip_nlvr", "nlvr")]
    there, here = ({layer.name: layer.shape for _, layer in Anatomy.of(adapter.towers(one), adapter.layers).layers()}
                   for one in (planned, model))  # fmt: skip
    assert there == here
    adapter.save(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text()) == {
        "library": "lavis", "model_type": "lavis_blip_nlvr", "name": "blip_nlvr", "type": "nlvr",
    }  # fmt: skip
    again = LavisBlipNlvrAdapter()
    read = again.load(open_source(str(tmp_path / "saved"), Path()), None, "cpu")
    assert type(read) is BlipNLVR
    assert len(fetched) == 1
    assert again.processor.transform is not None
    torch.testing.assert_close(read.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not read.training
    assert (read.tokenizer is None, planned.tokenizer is None) == (False, True)


def test_a_tokenizer_that_cannot_be_had(
    fetched: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from lavis.models.blip_models.blip import BlipBase

    def offline(cls: Any) -> Any:
        raise OSError("no network")

    adapter = LavisBlipNlvrAdapter()
    adapter.save(adapter.load(open_source(NLVR, Path()), None, "cpu"), tmp_path / "saved")
    monkeypatch.setattr(BlipBase, "init_tokenizer", classmethod(offline))
    with pytest.raises(ModelError, match="LAVIS cannot build blip_nlvr/nlvr: no network"):
        adapter.load(open_source(str(tmp_path / "saved"), Path()), None, "cpu")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lavis:blip_nlvr2/nlvr", r"no 'blip_nlvr2' among its BLIP-NLVR models\. Did you mean 'blip_nlvr'"),
        ("lavis:blip_nlvr/nlvr2", r"has no type 'nlvr2'\. Did you mean 'nlvr'"),
    ],
)
def test_a_name_that_lavis_does_not_know(name: str, told: str):
    with pytest.raises(ModelError, match=told):
        LavisBlipNlvrAdapter().load(Source(name), None, "cpu")


def nlvr2(folder: Path, split: str, samples: list[Sample]) -> dict[str, Any]:
    """Write samples as NLVR2 publishes them, and give the dataset that reads them in their order."""
    rows = []
    for number, sample in enumerate(samples):
        for side, image in enumerate(sample.images):
            file = folder / "images" / split / f"{split}-{number}-0-img{side}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        label = ("False", "True")[sample.label]
        rows.append({"identifier": f"{split}-{number}-0-0", "sentence": sample.text, "label": label})
    (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    paths = {"path": str(folder / f"{split}.json"), "images": str(folder / "images")}
    return {"use": "image_pair", "samples": None, "order": "first", **paths}


def test_a_run_on_nlvr2s_files_is_scored_pruned_exported_and_counted(fetched: list[tuple[str, str]], tmp_path: Path):
    train, dev = pico.pairs(4), pico.pairs(11)[4:]
    recipe = {
        "version": 1,
        "model": NLVR,
        "calibration": {**nlvr2(tmp_path, "train", list(train)), "batch_size": 2},
        "sparsity": 0.5,
        "score": {"use": "zeroth_order", "samples": 2, "granularity": "block"},
        "allocate": {"use": "ecoflap", "max_sparsity": 0.6},
        "prune": "wanda",
        "evaluate": {"use": "classification", "data": nlvr2(tmp_path, "dev", list(dev)), "batch_size": 3},
        "export": "safetensors",
    }
    done = ecoflap.run(recipe, folder=tmp_path / "run")
    assert fetched == [("blip_nlvr", "nlvr")]
    masks = ecoflap.load_masks(tmp_path / "run")
    assert sum(int(mask.sum()) for mask in masks.values()) == done.plan.keep == done.plan.size // 2
    state = done.model.state_dict()
    assert all(not state[name][~mask].any() for name, mask in masks.items())
    processor = pico.with_processor(LavisBlipNlvrAdapter()).processor
    for stage, model in (("dense", pico.nlvr()), ("pruned", done.model)):
        with torch.no_grad():
            told = [int(alone(model.double(), sample, processor).argmax()) for sample in dev]
        right = sum(answer == sample.label for answer, sample in zip(told, dev, strict=True))
        (measure,) = getattr(done.report.measures, stage).values()
        assert (measure.value, measure.n, measure.unit) == (pytest.approx(right / 7), 7, "sentences")
    saved = open_source(str(tmp_path / "run/model"), Path())
    packed = ecoflap.load_model(tmp_path / "run/exports/safetensors")
    for again in (LavisBlipNlvrAdapter().load(saved, None, "cpu").state_dict(), packed.state_dict()):
        assert again.keys() == state.keys()
        assert all(torch.equal(again[name].double(), weight.double()) for name, weight in state.items())
    assert len(fetched) == 1


@pytest.mark.parametrize(("name", "forwards"), [("zeroth", 2 * (12 * 4 + 12 * (4 + 8 + 2) + 6) * 32), ("uniform", 0)])
def test_the_papers_recipe_is_planned_without_network_weights_or_data(
    name: str, forwards: int, monkeypatch: pytest.MonkeyPatch
):
    """Of 768 × 768 weights a block of vision has 12, one of text 4 and 8 for the two attentions and 8 for the MLP, and
    each of the last six one of 1536 × 768."""
    import socket

    def offline(*arguments: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", offline)
    registry = ecoflap.load_registry()
    path = Path(ecoflap.__file__).parent / "recipes" / "paper" / f"blip-nlvr-{name}-wanda.yaml"
    with pytest.raises(DataNotReady) as caught:
        prepare(load_recipe(path, registry=registry), registry, planning=True)
    prepared = caught.value.prepared
    assert prepared.size == (12 * (3 + 1 + 8) + 12 * (4 + 8 + 8) + 6 * 2) * 768**2
    assert sum(parameter.numel() for parameter in prepared.model.parameters()) == 259_372_034
    tables = {section.title: section.rows for section in prepared_tables(prepared)}
    assert (f"{forwards:,} forwards" in dict(tables["work"])["score"]) == bool(forwards)
    assert len(caught.value.problems) == 3
    assert all("image_pair: images: " in problem for problem in caught.value.problems)
