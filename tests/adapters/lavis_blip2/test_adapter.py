"""BLIP-2 of salesforce-lavis: its own loss, its own checkpoints, and what a run needs besides."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ecoflap
from ecoflap import Replay
from ecoflap.adapters.hubs.lavis import CHECKPOINT, in_type
from ecoflap.adapters.lavis_blip2.adapter import LavisBlip2Adapter, similarities
from ecoflap.core.contracts.abilities import Compares, Generates, Generation
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError, RecipeError
from ecoflap.core.forward.observation import Observation
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source
from ecoflap.core.registry.adapter_for import adapter_for

pytest.importorskip("lavis", reason="pip install 'ecoflap[lavis]' in an environment of its own")

import pico_lavis as pico

KINDS = ("t5", "opt", "retrieval")


@pytest.fixture
def adapter() -> LavisBlip2Adapter:
    return pico.adapter()


def captions(count: int) -> list[Sample]:
    return [Sample(image=sample.image, text=sample.text or sample.answers[0]) for sample in pico.samples(count)]


@pytest.mark.parametrize(("kind", "size"), [("t5", 4), ("opt", 4), ("retrieval", 1)])
def test_claims_models_in_memory_by_their_class(kind: str, size: int):
    adapter = adapter_for(in_memory(pico.model(kind)), ecoflap.load_registry())
    assert isinstance(adapter, LavisBlip2Adapter)
    assert not adapter.matches(in_memory(nn.Linear(size, size)))
    assert not adapter.matches(in_memory(pico.eva()))


def test_claims_what_it_names_without_importing_lavis(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lavis", None)
    adapter = LavisBlip2Adapter()
    assert adapter.matches(Source("lavis:blip2_t5/pretrain_flant5xl"))
    assert adapter.matches(Source("./model", config={"library": "lavis", "name": "blip2_t5"}))
    assert not adapter.matches(Source("./model", config={"library": "lavis", "name": "blip_nlvr"}))
    assert not adapter.matches(Source("lavis:albef_vqa/vqav2"))
    assert not adapter.matches(Source("timm:eva02_tiny_patch14_224"))
    with pytest.raises(ModelError, match=r"cannot be imported .*ecoflap\[lavis\].*Python 3\.11"):
        adapter.load(Source("lavis:blip2_t5/pretrain_flant5xl"), None, "cpu")


@pytest.mark.parametrize("prompt", ["", "a"])
@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_the_loss_of_captions_is_lavis_own(kind: str, prompt: str, adapter: LavisBlip2Adapter):
    model = pico.model(kind, prompt=prompt)
    batch = adapter.collate(model, captions(3))
    texts = batch["text_output"]
    if kind == "t5":
        own = {"text_input": [prompt] * 3, "text_output": texts}
    else:
        own = {"text_input": [f"{prompt} {text}".strip() for text in texts]}
    with torch.no_grad():
        expected = model({"image": batch["image"], **own})["loss"]
        torch.testing.assert_close(adapter.loss(model, batch), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_only_the_answer_is_to_be_said(kind: str, adapter: LavisBlip2Adapter):
    """By hand, from the logits of the language model inside: nothing is asked of it about the question."""
    model, (_, sample) = pico.model(kind, max_txt_len=48), pico.samples(2)
    batch = adapter.collate(model, [sample])
    language, tokenizer = getattr(model, f"{kind}_model"), getattr(model, f"{kind}_tokenizer")
    logits: list[Tensor] = []
    handle = language.register_forward_hook(lambda module, args, output: logits.append(output.logits))
    with torch.no_grad():
        loss = adapter.loss(model, batch)
    handle.remove()
    answer, start = sample.answers[0], 0
    ids = tokenizer(answer).input_ids
    if kind == "opt":  # each token is told by the position before it, and those before the answer are its question's
        question = tokenizer("what is it").input_ids
        ids = tokenizer(f"what is it {answer}\n").input_ids[len(question) :]
        start = pico.QUERIES + len(question) - 1
    told = logits[0][0, start : start + len(ids)].double().log_softmax(-1)
    torch.testing.assert_close(loss, -told.gather(1, torch.tensor(ids)[:, None]).mean(), rtol=1e-6, atol=0)


def test_retrieval_is_info_nce_of_lavis_own_features(adapter: LavisBlip2Adapter):
    model = pico.model("retrieval")
    batch = adapter.collate(model, captions(3))
    own = {"image": batch["image"], "text_input": batch["text_output"]}
    images = model.extract_features(own, mode="image").image_embeds_proj
    texts = model.extract_features(own, mode="text").text_embeds_proj[:, 0]
    expected = torch.einsum("iqd,td->iqt", images, texts).max(1).values / model.temp
    with torch.no_grad():
        torch.testing.assert_close(similarities(model, batch), expected, rtol=1e-5, atol=1e-5)
        loss = adapter.loss(model, batch)
    targets = torch.arange(3)
    by_hand = (F.cross_entropy(expected.double(), targets) + F.cross_entropy(expected.double().T, targets)) / 2
    torch.testing.assert_close(loss, by_hand.detach(), rtol=1e-5, atol=0)


def test_the_q_former_of_retrieval_reads_images_then_texts(adapter: LavisBlip2Adapter):
    model = pico.model("retrieval")
    batch = adapter.collate(model, captions(3))
    assert adapter.tokens(model, batch, "qformer").tolist() == [[2] * pico.QUERIES] * 3
    text = adapter.tokens(model, batch, "qformer", 1)
    assert text.sum(1).tolist() == [2 + len(words.split()) for words in batch["text_output"]]
    assert set(text.flatten().tolist()) == {0, 1}
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    assert {block.calls for block in anatomy.blocks if block.tower == "qformer"} == {2}
    crossing = {layer.name: layer.reads for _, layer in anatomy.layers() if "crossattention" in layer.name}
    assert {name.rpartition("crossattention.")[2]: tower for name, tower in crossing.items()} == {
        "self.query.weight": "", "self.key.weight": "vision", "self.value.weight": "vision", "output.dense.weight": "",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_no_cache_is_made_and_hooks_are_gone_afterwards(kind: str, adapter: LavisBlip2Adapter):
    model = pico.model(kind)
    batch = adapter.collate(model, pico.samples(2))
    language = getattr(model, f"{kind}_model")
    found: list[Any] = []
    handle = language.register_forward_hook(lambda module, args, output: found.append(output.past_key_values))
    adapter.loss(model, batch)
    handle.remove()
    assert found == [None]
    assert not language._forward_hooks
    assert not language._forward_pre_hooks


def test_every_matrix_of_eva_is_captured_although_a_hook_never_fires(adapter: LavisBlip2Adapter):
    model = pico.model("t5")
    replay = Replay(model, adapter, [adapter.collate(model, pico.samples(2))])
    fired: list[str] = []
    model.visual_encoder.blocks[0].attn.qkv.register_forward_hook(lambda *_: fired.append("qkv"))
    assert isinstance(Observation(replay.blocks[0], [], ()), Observation)
    assert "visual_encoder.blocks.0.attn.qkv.weight" in replay.run(0, ())
    assert not fired


def test_a_clip_vision_tower_holds_tokens_before_the_batch(adapter: LavisBlip2Adapter):
    model = pico.model("t5", pico.clip)
    vision = adapter.towers(model)[0]
    layers = adapter.layers(vision.blocks[0])
    assert {layer.layout for layer in layers} == {"token batch"}
    assert [layer.name.rpartition("resblocks.0.")[2] for layer in layers] == [
        "attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_lavis_reads_what_was_saved(kind: str, adapter: LavisBlip2Adapter, tmp_path: Path):
    model = pico.model(kind)
    adapter.save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    again = pico.model(kind, seed=5)
    told = again.load_checkpoint(str(tmp_path / CHECKPOINT))
    assert (told.missing_keys, told.unexpected_keys) == ([], [])
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was asked of LAVIS, which answers with pico models in place of downloads."""
    from lavis import models

    asked: list[tuple[str, str]] = []

    def load(name: str, kind: str, is_eval: bool, device: str) -> tuple[Any, Any, Any]:
        assert (is_eval, device) == (True, "cpu")
        asked.append((name, kind))
        return pico.model("t5"), {"eval": pico.adapter().processor}, {}

    monkeypatch.setattr(models, "load_model_and_preprocess", load)
    return asked


XL = "lavis:blip2_t5/pretrain_flant5xl"


def test_a_model_by_lavis_name_is_fetched_once_for_plan_and_run(fetched: list[tuple[str, str]]):
    """It waits in the source, from which the next load takes it: the adapter holds no model."""
    adapter = LavisBlip2Adapter()
    source = open_source(XL, Path())
    weightless = adapter.load(source, None, "meta")
    assert all(parameter.is_meta for parameter in weightless.parameters())
    assert all(buffer.is_meta for buffer in weightless.buffers())
    assert vars(adapter) == {"processor": None}
    assert fetched == [("blip2_t5", "pretrain_flant5xl")]
    again = adapter.load(source, None, "meta")
    assert all(parameter.is_meta for parameter in again.parameters())
    model = adapter.load(source, None, "cpu")
    assert fetched == [("blip2_t5", "pretrain_flant5xl")]
    assert source.loaded == {}
    torch.testing.assert_close(model.state_dict(), pico.model("t5").state_dict(), rtol=0, atol=0)
    assert not model.training
    told = Anatomy.of(adapter.towers(weightless), adapter.layers)
    assert [layer.shape for _, layer in told.layers()] == [
        layer.shape for _, layer in Anatomy.of(adapter.towers(model), adapter.layers).layers()
    ]
    assert adapter.collate(model, pico.samples(2))["image"].shape == (2, 3, pico.SIZE, pico.SIZE)
    assert adapter.load(source, None, "cpu") is not model
    assert len(fetched) == 2


def test_a_whole_run_by_lavis_name_fetches_it_once(fetched: list[tuple[str, str]], tmp_path: Path):
    done = run(XL, tmp_path)
    assert fetched == [("blip2_t5", "pretrain_flant5xl")]
    assert done.plan.keep * 2 == done.plan.size
    assert not any(parameter.is_meta for parameter in done.model.parameters())


def test_a_saved_one_leaves_nothing_waiting(fetched: list[tuple[str, str]], tmp_path: Path):
    adapter = LavisBlip2Adapter()
    adapter.save(adapter.load(open_source(XL, Path()), None, "cpu"), tmp_path)
    saved = open_source(str(tmp_path), Path())
    adapter.load(saved, None, "meta")
    assert saved.loaded == {}


def test_a_run_of_one_ends_in_a_folder_that_loads_again(fetched: list[tuple[str, str]], tmp_path: Path):
    adapter = LavisBlip2Adapter()
    model = adapter.load(open_source(XL, Path()), torch.bfloat16, "cpu")
    assert model.ln_vision.weight.dtype == torch.float32
    assert model.query_tokens.dtype == torch.bfloat16
    model.t5_proj.weight.data[0] = 0
    adapter.save(model, tmp_path)
    saved = open_source(str(tmp_path), Path())
    assert json.loads((tmp_path / "config.json").read_text())["type"] == "pretrain_flant5xl"
    again = LavisBlip2Adapter().load(saved, None, "cpu")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert len(fetched) == 2


def test_the_processor_is_that_of_the_model_that_was_loaded_last(monkeypatch: pytest.MonkeyPatch):
    from lavis import models

    sizes = {"pretrain_flant5xl": 224, "caption_coco_flant5xl": 364}

    def load(name: str, kind: str, is_eval: bool, device: str) -> tuple[Any, Any, Any]:
        return pico.model("t5"), {"eval": f"to {sizes[kind]}"}, {}

    monkeypatch.setattr(models, "load_model_and_preprocess", load)
    adapter = LavisBlip2Adapter()
    for kind in (*sizes, *sizes):
        adapter.load(Source(f"lavis:blip2_t5/{kind}"), None, "cpu")
        assert adapter.processor == f"to {sizes[kind]}"


def test_models_read_by_one_adapter_are_saved_by_their_own_names(fetched: list[tuple[str, str]], tmp_path: Path):
    adapter, names = LavisBlip2Adapter(), ("pretrain_flant5xl", "caption_coco_flant5xl")
    models = [adapter.load(Source(f"lavis:blip2_t5/{name}"), None, "cpu") for name in names]
    for name, model in zip(names, models, strict=True):
        adapter.save(model, tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text()) == {
            "library": "lavis", "model_type": "lavis_blip2_t5", "name": "blip2_t5", "type": name,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda file: file.unlink(), "cannot be read as a checkpoint"),
        (lambda file: file.write_bytes(file.read_bytes()[:-500]), "cannot be read as a checkpoint"),
        (lambda file: torch.save({"model": {"query_tokens": torch.zeros(1)}}, file), "cannot be read as a checkpoint"),
        (lambda file: torch.save({"model": print}, file), "cannot be read as a checkpoint"),
    ],
)
def test_a_broken_checkpoint(damage: Any, told: str, fetched: list[tuple[str, str]], tmp_path: Path):
    adapter = LavisBlip2Adapter()
    adapter.save(adapter.load(open_source(XL, Path()), None, "cpu"), tmp_path)
    damage(tmp_path / CHECKPOINT)
    with pytest.raises(ModelError, match=told):
        adapter.load(open_source(str(tmp_path), Path()), None, "cpu")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lavis:blip2_t6/x", r"no 'blip2_t6' among its BLIP-2 models\. Did you mean 'blip2_t5'"),
        ("lavis:blip2_t5", r"blip2_t5 has no type ''.*lavis:blip2_t5/TYPE with one of pretrain_flant5xl, "),
        ("lavis:blip2_t5/pretrain_flant5x", r"Did you mean 'pretrain_flant5xl"),
    ],
)
def test_a_name_that_lavis_does_not_know(name: str, told: str):
    with pytest.raises(ModelError, match=told):
        LavisBlip2Adapter().load(Source(name), None, "cpu")


def test_a_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch):
    from lavis import models

    def load(*arguments: Any, **keywords: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(models, "load_model_and_preprocess", load)
    with pytest.raises(ModelError, match="LAVIS cannot load blip2_t5/pretrain_flant5xl: no network"):
        LavisBlip2Adapter().load(Source(XL), None, "cpu")


def test_samples_it_cannot_use(adapter: LavisBlip2Adapter):
    model, image = pico.model("t5"), pico.samples(1)[0].image
    with pytest.raises(DataError, match="has no caption and no answer"):
        adapter.collate(model, [Sample(image=image, question="what is it")])
    with pytest.raises(DataError, match="looks at images, and 1 of 1"):
        adapter.collate(model, [Sample(text="a dog")])
    with pytest.raises(DataError, match=r"give ecoflap\.run a processor"):
        LavisBlip2Adapter().collate(model, pico.samples(1))


def test_types_that_lavis_cannot_mix_here(adapter: LavisBlip2Adapter, tmp_path: Path):
    from lavis.models.eva_vit import convert_weights_to_fp16

    model = pico.model("t5")
    batch = adapter.collate(model, pico.samples(2))
    nn.Module.to(model, torch.bfloat16)
    with pytest.raises(ModelError, match=r"layer norms in float32.*call model\.float\(\)\.$"):
        adapter.loss(model, batch)
    assert adapter.loss(in_type(model, torch.bfloat16), batch).isfinite()
    mixed = pico.model("t5")
    convert_weights_to_fp16(mixed.visual_encoder)
    with pytest.raises(RecipeError, match=r"vision tower mixes torch\.float16 and torch\.float32.*model\.float\(\)"):
        run(mixed, tmp_path)


def test_a_contrastive_loss_wants_pairs(tmp_path: Path):
    with pytest.raises(RecipeError, match="batch_size is 1, but a contrastive loss compares pairs"):
        run(pico.model("retrieval"), tmp_path, batch_size=1)


def run(model: nn.Module | str, folder: Path, batch_size: int = 2, **keys: Any) -> ecoflap.Run:
    calibration = {"use": Data, "batch_size": batch_size}
    recipe = {"version": 1, "calibration": calibration, "sparsity": 0.5, "score": None, "prune": "wanda", **keys}
    recipe = {key: value for key, value in recipe.items() if value is not None}
    if isinstance(model, str):
        return ecoflap.run({**recipe, "model": {"source": model}}, folder=folder / "run")
    return ecoflap.run(recipe, model=model, processor=pico.adapter().processor, folder=folder / "run")


class Data:
    """Four pictures."""

    def __call__(self, adapter: Any, model: nn.Module, note: Any) -> Any:
        yield from pico.samples(4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_memory_is_taken_up_again(kind: str, tmp_path: Path):
    first = run(pico.model(kind), tmp_path)
    folder = tmp_path / "run"
    (folder / "report.json").unlink()
    second = run(pico.model(kind), tmp_path)
    assert sorted(path.name for path in (folder / "model").iterdir()) == ["SHA256SUMS", CHECKPOINT]
    torch.testing.assert_close(second.model.state_dict(), first.model.state_dict(), rtol=0, atol=0)


def lively(kind: str) -> Any:
    """With larger weights, or a pico model says one and the same word to everything."""
    model = pico.model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def questions() -> list[Sample]:
    asked = [" ".join(pico.WORDS[1 : 3 + number]) for number in range(4)]
    return [Sample(image=one.image, question=text) for one, text in zip(pico.samples(4), asked, strict=True)]


@pytest.mark.parametrize(("beams", "penalty"), [(1, 1.0), (3, -1.0)])
@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_says_what_lavis_has_it_say(kind: str, beams: int, penalty: float, adapter: LavisBlip2Adapter):
    """By LAVIS' own ``predict_answers`` and ``generate``; the latter takes one prompt for all images."""
    model, samples = lively(kind), questions()
    generation = Generation(6, 0, beams, penalty)
    found = adapter.generate(model, samples, generation)
    images = torch.stack([adapter.processor(sample.image) for sample in samples])
    if kind == "t5":
        told = {"image": images, "text_input": [sample.question for sample in samples]}
        theirs = model.predict_answers(told, num_beams=beams, max_len=6, length_penalty=penalty)
    else:
        theirs = [
            model.generate({"image": image[None], "prompt": sample.question}, num_beams=beams, max_length=6,
                           length_penalty=penalty)[0]
            for image, sample in zip(images, samples, strict=True)
        ]  # fmt: skip
    assert [said.text for said in found] == theirs
    assert len(set(theirs)) >= 3
    assert found == [adapter.generate(model, [sample], generation)[0] for sample in samples]


@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_tokens_of_an_answer_are_those_of_its_text(kind: str, adapter: LavisBlip2Adapter):
    model = lively(kind)
    tokenizer = getattr(model, f"{kind}_tokenizer")
    tokens = adapter.tokens_of(model, "red dog")
    assert tokenizer.decode(tokens) == ("red dog" if kind == "t5" else " red dog")
    assert model.eos_token_id not in tokens if kind == "opt" else 1 not in tokens


def test_a_model_for_retrieval_makes_no_texts(adapter: LavisBlip2Adapter):
    model = pico.model("retrieval")
    assert "has no language model" in str(adapter.refuses(model, Generates))
    assert adapter.refuses(pico.model("t5"), Generates) is None
    assert adapter.refuses(model, Compares) != adapter.refuses(model, Generates)
    with pytest.raises(ModelError, match="has no language model"):
        adapter.generate(model, questions(), Generation())
    with pytest.raises(ModelError, match="has no language model"):
        adapter.tokens_of(model, "red dog")
