import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_open_clip import LENGTH, WORDS, Tokenizer, adapter_for, build, pairs, poisoned
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("open_clip", reason="pip install 'ecoflap[clip]'")

import ecoflap
from ecoflap import ColumnNorm, Replay
from ecoflap.adapters.open_clip import OpenClipAdapter
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import DataError, ModelError, RecipeError
from ecoflap.core.forward.capture import watching, without_fast_path
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source

pytestmark = pytest.mark.skipif(
    int(version("open_clip_torch").split(".")[0]) < 3, reason="custom blocks and local folders came with open_clip 3"
)

BLOCK = ["attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]


@pytest.fixture
def adapter() -> OpenClipAdapter:
    return OpenClipAdapter()


def saved(name: str, folder: Path, **arguments: Any) -> Source:
    adapter = adapter_for(name)
    adapter.save(build(name, **arguments), folder)
    return open_source(str(folder), folder)


def features(model: Any, batch: Any) -> tuple[Tensor, ...]:
    with torch.no_grad(), without_fast_path():
        return tuple(model(batch["image"].to(model.visual.conv1.weight.dtype), batch["text"]))


def test_is_an_adapter(adapter: OpenClipAdapter):
    assert isinstance(adapter, Adapter)


@pytest.mark.parametrize("name", ["pico-clip", "pico-custom"])
def test_matrices_of_a_block(name: str, adapter: OpenClipAdapter):
    model = build(name)
    assert adapter.matches(in_memory(model))
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    for block in ("visual.transformer.resblocks.1", "transformer.resblocks.0"):
        layers = anatomy.layers_of[block]
        assert [layer.name for layer in layers] == [f"{block}.{matrix}" for matrix in BLOCK]
        assert layers[0].shape == (96, 32)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", ["pico-clip", "pico-custom"])
def test_layouts_say_how_inputs_lie(name: str, batch_first: bool, adapter: OpenClipAdapter):
    """Two texts whose tokens all differ: the rows of each input that are of the second text are where layout says."""
    model: Any = build(name)
    if not batch_first:
        if name == "pico-custom":
            pytest.skip("custom blocks are batch first")
        model.transformer.batch_first = False
        for block in model.transformer.resblocks:
            block.attn.batch_first = False
    layers = [
        layer for tower in adapter.towers(model)[1:2] for block in tower.blocks for layer in adapter.layers(block)
    ]
    one, other = Tokenizer()(["word1 word2"]), Tokenizer()(["word5 word6 word7"])

    def rows(text: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), without_fast_path(), watching(layers, lambda layer, x, _: seen.update({layer.name: x})):
            model.encode_text(text)
        return {name: inputs.reshape(-1, inputs.shape[-1]) for name, inputs in seen.items()}

    alone, both = rows(other), rows(torch.cat([one, other]))
    for layer in layers:
        per_text = both[layer.name]
        second = per_text[LENGTH:] if layer.layout == "batch token" else per_text[1::2]
        torch.testing.assert_close(second, alone[layer.name], rtol=1e-5, atol=1e-6, msg=layer.name)


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("pico-clip", []),
        ("pico-custom", ["text_projection"]),
        ("pico-eva", ["visual.trunk.head"]),
        ("pico-eva-linear", ["visual.head.proj"]),
    ],
)
def test_projections_that_are_linear_can_be_included(name: str, outside: list[str], adapter: OpenClipAdapter):
    model = build(name)
    towers = adapter.towers(model)
    assert [tower.name for tower in towers if tower.outside] == outside
    batch = adapter_for(name).collate(model, pairs(3))
    replay = Replay(model, adapter, [batch], anatomy=Anatomy.of(towers, adapter.layers, outside))
    for index in range(len(replay.blocks)):
        assert replay.run(index, (ColumnNorm,))
        replay.advance(index)


@pytest.mark.parametrize("name", ["pico-clip", "pico-custom", "pico-eva"])
@pytest.mark.parametrize("output_dict", [False, True])
def test_loss_is_symmetric_info_nce(name: str, output_dict: bool, adapter: OpenClipAdapter):
    from open_clip.loss import ClipLoss

    model: Any = build(name, output_dict=output_dict)
    batch = adapter_for(name).collate(model, pairs(4))
    with torch.no_grad():
        images = model.encode_image(batch["image"], normalize=True).double()
        texts = model.encode_text(batch["text"], normalize=True).double()
        logits = model.logit_scale.double().exp() * images @ texts.T
        by_hand = -(logits.log_softmax(1).diag() + logits.log_softmax(0).diag()).mean() / 2
        loss = adapter.loss(model, batch)
        theirs = ClipLoss()(images, texts, model.logit_scale.double().exp())
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-7)


def test_loss_with_a_logit_bias_is_siglips(adapter: OpenClipAdapter):
    from open_clip.loss import SigLipLoss

    model: Any = build("pico-siglip")
    batch = adapter_for("pico-siglip").collate(model, pairs(4))
    with torch.no_grad():
        images, texts, scale, bias = model(batch["image"], batch["text"])
        theirs = SigLipLoss()(images, texts, scale, bias).double()
        torch.testing.assert_close(adapter.loss(model, batch), theirs, rtol=1e-5, atol=0)


def test_one_pair_is_refused(adapter: OpenClipAdapter):
    model = build("pico-clip")
    with pytest.raises(DataError, match="at least two pairs"):
        adapter.loss(model, adapter_for("pico-clip").collate(model, pairs(1)))


def test_batches_of_one_pair_are_a_problem_of_the_plan(tmp_path: Path):
    recipe = {
        "version": 1, "sparsity": 0.5, "prune": "wanda", "allocate": "uniform",
        "calibration": {"use": "table:Samples", "row": "open_clip", "samples": 3, "batch_size": 1},
    }  # fmt: skip
    processor = (None, Tokenizer())
    with pytest.raises(RecipeError, match="batch_size is 1"):
        ecoflap.run(recipe, model=build("pico-clip"), processor=processor, folder=tmp_path / "run", allow_code=True)


def test_tokens_end_with_the_end_of_the_text(adapter: OpenClipAdapter):
    model = build("pico-clip")
    batch = adapter_for("pico-clip").collate(model, pairs(2))
    assert adapter.tokens(model, batch, "vision").tolist() == [[2] * 17] * 2
    lengths = [len(sample.text.split()) + 2 for sample in pairs(2) if sample.text]
    assert adapter.tokens(model, batch, "text").tolist() == [[1] * n + [0] * (LENGTH - n) for n in lengths]
    assert adapter.max_length(model) == LENGTH


def test_a_text_cut_to_the_models_length_is_all_text(adapter: OpenClipAdapter):
    batch = {"text": Tokenizer()([" ".join(f"word{i}" for i in range(20))])}
    assert adapter.tokens(build("pico-clip"), batch, "text").tolist() == [[1] * LENGTH]


def test_tokens_of_other_text_towers(adapter: OpenClipAdapter):
    ids = Tokenizer()(["word1", "word1 word2 word3"])
    model: Any = build("pico-siglip")
    assert adapter.tokens(model, {"text": ids}, "text").tolist() == [[1] * LENGTH] * 2
    model.text.use_pad_mask = True
    assert adapter.tokens(model, {"text": ids}, "text").equal(ids.ne(0).to(torch.int8))
    plain: Any = build("pico-clip")
    plain.text_pool_type, plain.text_eos_id = "eos", 2  # word1
    assert adapter.tokens(plain, {"text": ids}, "text").sum(1).tolist() == [2, 2]


def test_padding_that_a_model_looks_at_is_not_called_padding():
    """Without a causal mask a poisoned padding changes the features, so it counts as text."""
    model: Any = build("pico-siglip")
    batch = adapter_for("pico-siglip").collate(model, pairs(2))
    before = features(model, batch)[1]
    assert not torch.equal(features(model, poisoned(model, batch))[1], before)
    causal: Any = build("pico-clip")
    before = features(causal, batch)[1]
    assert torch.equal(features(causal, poisoned(causal, batch))[1], before)
    assert WORDS - 3 in poisoned(causal, batch)["text"]


@pytest.mark.parametrize("processor", [None, Tokenizer(), (None,)])
def test_says_that_a_pair_is_wanted(processor: Any, adapter: OpenClipAdapter):
    adapter.processor = processor
    with pytest.raises(DataError, match=r"processor=\(transform, tokenizer\)"):
        adapter.collate(build("pico-clip"), pairs(2))


def test_names_samples_without_text():
    samples = [*pairs(2), replace(pairs(3)[2], text=None)]
    with pytest.raises(DataError, match="1 of 3 samples have no text"):
        adapter_for("pico-clip").collate(build("pico-clip"), samples)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("coca_ViT-B-32", "CoCa"),
        ("RN50", "ModifiedResNet"),
        ("roberta-ViT-B-32", "HFTextEncoder"),
        ("convnext_base", "a ConvNeXt as the vision tower"),
    ],
)
def test_refuses_other_kinds_by_name(name: str, kind: str, adapter: OpenClipAdapter, tmp_path: Path):
    import open_clip

    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    source = open_source(str(tmp_path), tmp_path)
    assert adapter.matches(source)
    with pytest.raises(ModelError, match=kind):
        adapter.towers(adapter.load(source, None, "meta"))


@pytest.mark.parametrize("name", ["RN50", "coca_ViT-B-32"])
def test_refuses_other_kinds_in_memory(name: str, adapter: OpenClipAdapter):
    import open_clip

    with torch.device("meta"):
        config = open_clip.get_model_config(name)
        kind = open_clip.CoCa if config.pop("custom_text", False) else open_clip.CLIP
        model = kind(**config)
    assert adapter.matches(in_memory(model))
    with pytest.raises(ModelError, match="of open_clip is not covered"):
        adapter.towers(model)


def test_by_name_without_weights(adapter: OpenClipAdapter):
    source = Source("open_clip:ViT-B-16/openai")
    assert adapter.matches(source)
    model: Any = adapter.load(source, None, "meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    layers = list(Anatomy.of(adapter.towers(model), adapter.layers).layers())
    assert (len(layers), sum(layer.size for _, layer in layers)) == (96, 12 * 12 * (768**2 + 512**2))
    kinds = {type(module).__name__ for module in model.modules()}
    assert "QuickGELU" in kinds  # which these weights were trained with, and ViT-B-16 alone does not have
    assert adapter.processor is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-16", r"names no weights: write open_clip:ViT-B-16/TAG\. Tags of ViT-B-16: .*openai"),
        ("ViT-B-16/openia", r"no weights 'openia' of ViT-B-16\. Did you mean 'openai'"),
        ("ViT-B-61/openai", r"no architecture named 'ViT-B-61'\. Did you mean 'ViT-B-16'"),
        ("ViT-B-61", r"no architecture named 'ViT-B-61'\. Did you mean 'ViT-B-16'"),
    ],
)
def test_names_it_cannot_take(name: str, message: str, adapter: OpenClipAdapter):
    with pytest.raises(ModelError, match=message):
        adapter.load(Source(f"open_clip:{name}"), None, "meta")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "pure_bf16"])
@pytest.mark.parametrize("name", ["pico-clip", "pico-qk-norm"])
def test_every_precision_of_open_clip_runs_and_comes_back(name: str, precision: str, tmp_path: Path):
    """Mixed ones keep norms and embeddings in float32, and have norms of another class."""
    model: Any = build(name, precision=precision)
    adapter = adapter_for(name)
    batch = adapter.collate(model, pairs(3))
    for dtype in (None, torch.float32):
        replay = Replay(model, adapter, [batch], dtype=dtype)
        expected = replay.loss()
        for index in range(len(replay.blocks)):
            assert torch.equal(replay.loss(index), expected)
            assert replay.run(index, (ColumnNorm,))
            replay.advance(index)
    adapter.save(model, tmp_path)
    again: Any = OpenClipAdapter().load(open_source(str(tmp_path), tmp_path), None, "cpu")
    kinds, told = ({n: t.dtype for n, t in one.state_dict().items()} for one in (again, model))
    assert kinds == told
    for found, wanted in zip(features(again, batch), features(model, batch), strict=True):
        assert torch.equal(found, wanted)


def test_the_way_open_clip_casts_text_is_as_before(adapter: OpenClipAdapter):
    model: Any = build("pico-clip")
    adapter.loss(model, adapter_for("pico-clip").collate(model, pairs(2)))
    assert "get_cast_dtype" not in vars(model.transformer)


def test_saves_what_open_clip_reads(tmp_path: Path):
    import open_clip

    source = saved("pico-custom", tmp_path)
    model: Any = build("pico-custom", force_image_size=16)
    batch = adapter_for("pico-custom").collate(model, pairs(2))
    again, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    assert all(map(torch.equal, features(again.eval(), batch), features(model, batch)))
    assert torch.equal(transform(pairs(1)[0].image), adapter_for("pico-custom").processor[0](pairs(1)[0].image))
    loaded = OpenClipAdapter()
    loaded.save(loaded.load(source, None, "cpu"), tmp_path / "again")
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_two_models_read_by_one_adapter_are_saved_each_as_it_was_read(tmp_path: Path):
    sources = [saved(name, tmp_path / name) for name in ("pico-custom", "pico-siglip")]
    adapter = OpenClipAdapter()
    models = [adapter.load(source, None, "cpu") for source in sources]
    for name, model in zip(("pico-custom", "pico-siglip"), models, strict=True):
        adapter.save(model, tmp_path / "again" / name)
        for file in (tmp_path / name).iterdir():
            assert file.read_bytes() == (tmp_path / "again" / name / file.name).read_bytes(), file


def test_a_loaded_model_reads_images_and_texts_as_open_clip_does(tmp_path: Path):
    source = saved("pico-clip", tmp_path)
    adapter = OpenClipAdapter()
    model = adapter.load(source, None, "cpu")
    transform, tokenizer = adapter.processor.transform, adapter.processor.tokenizer
    assert transform(pairs(1)[0].image).shape == (3, 16, 16)
    ids = tokenizer([pair.text for pair in pairs(2)])
    assert ids.shape == (2, LENGTH)
    assert ids.max() == 49407  # the end of a text in open_clip's own tokenizer
    with pytest.raises(
        DataError, match=r"tokenizer, which knows 49408, makes token 49407 of a text, and this CLIP has .* for 40"
    ):
        adapter.collate(model, pairs(2))  # its configuration names the tokenizer, and has a smaller vocabulary


def test_a_tokenizer_beside_the_model_is_read_from_there(tmp_path: Path, pico_tokenizer: Any):
    saved("pico-clip", tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "somewhere/else"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    pico_tokenizer.save_pretrained(tmp_path)
    adapter = OpenClipAdapter()
    model = adapter.load(open_source(str(tmp_path), tmp_path), None, "cpu")
    ids = adapter.processor.tokenizer(["the of word9"])
    assert ids.shape == (1, LENGTH)
    assert ids[0, :3].tolist() == pico_tokenizer("the of word9")["input_ids"]
    adapter.save(model, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").is_file()


OWN = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).touch()
class Own(PreTrainedTokenizerFast): pass
"""


def test_a_configuration_cannot_have_the_code_of_a_tokenizer_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """open_clip hands ``tokenizer_kwargs`` on to transformers, which would take its word for being trusted."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    saved("pico-clip", tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    text = {"hf_tokenizer_name": "somewhere/else", "tokenizer_kwargs": {"trust_remote_code": True}}
    config["model_cfg"]["text_cfg"] |= text
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(OWN.format(mark=str(tmp_path / "mark")))
    written = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be read"):
        OpenClipAdapter().load(open_source(str(tmp_path), tmp_path), None, "cpu")
    assert not (tmp_path / "mark").exists()


def test_what_a_model_was_made_with_otherwise_is_noted(tmp_path: Path):
    model: Any = build("pico-clip", force_image_size=24, force_quick_gelu=True, force_custom_text=True)
    adapter = OpenClipAdapter(architecture="pico-clip")
    adapter.load(in_memory(model), None, "cpu")
    adapter.save(model, tmp_path)
    again: Any = OpenClipAdapter().load(open_source(str(tmp_path), tmp_path), None, "cpu")
    batch = {"image": torch.randn(2, 3, 24, 24), "text": Tokenizer()(["word1", "word2 word3"])}
    assert all(map(torch.equal, features(again, batch), features(model, batch)))


def test_another_architecture_than_the_models_is_refused():
    adapter = OpenClipAdapter(architecture="pico-siglip")
    with pytest.raises(ModelError, match=r"architecture: this model is of another one: .* is .* in the model"):
        adapter.load(in_memory(build("pico-custom")), None, "cpu")
    with pytest.raises(ModelError, match="no architecture named 'pico-clap'"):
        OpenClipAdapter(architecture="pico-clap").load(in_memory(build("pico-clip")), None, "cpu")


def test_without_an_architecture_the_weights_are_saved(adapter: OpenClipAdapter, tmp_path: Path):
    import open_clip

    model: Any = build("pico-clip")
    adapter.load(in_memory(model), None, "cpu")
    adapter.save(model, tmp_path)
    source = open_source(str(tmp_path), tmp_path)
    assert adapter.matches(source)
    with pytest.raises(ModelError, match=r"without their configuration: write adapter: \{use: open_clip, architecture"):
        adapter.load(source, None, "cpu")
    other: Any = open_clip.create_model("pico-clip")
    open_clip.load_checkpoint(other, str(tmp_path / "open_clip_model.safetensors"))
    again = OpenClipAdapter(architecture="pico-clip").load(source, None, "cpu")
    for one in (other, again):
        torch.testing.assert_close(one.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_refuses_a_checkpoint_with_holes(adapter: OpenClipAdapter, tmp_path: Path):
    from safetensors.torch import save_file

    source = saved("pico-clip", tmp_path)
    file = tmp_path / "open_clip_model.safetensors"
    state = load_file(file)
    del state["transformer.resblocks.1.mlp.c_fc.weight"]
    save_file(state, file)
    with pytest.raises(ModelError, match=r"(?s)cannot be loaded: .*transformer\.resblocks\.1\.mlp\.c_fc\.weight"):
        adapter.load(source, None, "cpu")


def test_from_the_hub(adapter: OpenClipAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved("pico-clip", tmp_path)

    def download(repository: str, file: str, revision: str | None = None, local_files_only: bool = False) -> str:
        assert (repository, revision) == ("org/name", "v1")
        if not (tmp_path / file).exists():
            raise FileNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    source = open_source("org/name@v1", tmp_path / "nowhere")
    assert adapter.matches(source)
    model = adapter.load(source, None, "cpu")
    torch.testing.assert_close(model.state_dict(), build("pico-clip").state_dict(), rtol=0, atol=0)
