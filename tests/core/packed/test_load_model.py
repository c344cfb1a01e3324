"""From a packed folder to the model in one call, for every family; the masks of a folder without its model."""

import json
import shutil
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from exported import bits, half_pruned, outputs
from table import ROWS, marked
from torch import nn
from transformers_version import is_before

import ecoflap
from ecoflap.adapters.hubs.description import describe
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.errors import EcoflapError, FormatError, ModelError
from ecoflap.core.model.source import open_source
from ecoflap.core.packed.into_model import without_weights
from ecoflap.core.packed.save_packed import save_packed
from ecoflap.core.pruning.masks import save_masks
from ecoflap.core.sealing.sums import write_sums
from ecoflap.exporters.safetensors import FILE, Safetensors

WHOLE = [name for name in sorted(ROWS) if ROWS[name].is_whole_on_disk]
SMALL = Safetensors(shard_bytes=30_000)
MASK = torch.arange(96).reshape(6, 16) % 2 == 0
"""Of a weight that is stored packed."""
FEW = torch.tensor([[True, False]])
"""Of a weight that is so small that it is stored dense."""
needs_llama = pytest.mark.skipif("llama" not in WHOLE, reason="these families are not of this environment")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "packed").mkdir()
    return tmp_path / "packed"


def kinds(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: buffer.dtype for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", marked(WHOLE))
def test_it_is_the_model_that_was_exported(name: str, dtype: torch.dtype | None, folder: Path, tmp_path: Path):
    if name == "blip2_retrieval" and dtype is torch.float16 and is_before("4.52"):
        pytest.skip("there its queries stay float32, and it fails by itself")
    pruned = half_pruned(name, tmp_path / "dense", dtype)
    model, adapter = pruned.model, pruned.adapter
    SMALL(pruned, folder)
    again = ecoflap.load_model(folder)
    assert type(again) is type(model)
    assert not any(module.training for module in again.modules())
    assert list(again.state_dict()) == list(model.state_dict())
    assert bits(again) == bits(model)
    assert kinds(again) == kinds(model)
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    ours, theirs = (outputs(name, one, adapter) for one in (model, again))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    masks, state = ecoflap.load_masks(folder), again.state_dict()
    layers = {state[layer].data_ptr() for layer in pruned.masks}
    assert list(masks) == [name for name, weight in state.items() if weight.data_ptr() in layers]
    assert all(torch.equal(masks[layer], mask) for layer, mask in pruned.masks.items())


@pytest.mark.parametrize("name", marked(WHOLE))
def test_it_is_what_the_family_reads_of_the_dense_checkpoint(name: str, folder: Path, tmp_path: Path):
    """Configuration, buffers that no file holds, and the type of each: as after the family's own loading."""
    pruned = half_pruned(name)
    model, adapter = pruned.model, pruned.adapter
    Safetensors()(pruned, folder)
    adapter.save(model, tmp_path / "dense")
    reference = adapter.load(open_source(str(tmp_path / "dense"), Path.cwd()), None, "cpu")
    again = ecoflap.load_model(folder)
    for buffer, expected in reference.named_buffers():
        found = again.get_buffer(buffer)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), buffer
    if hasattr(reference, "config"):
        assert again.config.to_dict() == reference.config.to_dict()
        assert str(getattr(again, "generation_config", "")) == str(getattr(reference, "generation_config", ""))
    assert {id(p) for p in again.parameters()} & {id(p) for p in model.parameters()} == set()
    assert len(list(again.parameters())) == len(list(reference.parameters()))


@pytest.mark.parametrize("name", [name for name in WHOLE if name in ("llama", "t5", "open_clip_eva", "timm_eva02")])
def test_in_another_type(name: str, folder: Path, tmp_path: Path):
    """As the family's adapter reads the dense checkpoint in that type: T5 keeps some weights in float32."""
    pruned = half_pruned(name)
    model, adapter = pruned.model, pruned.adapter
    Safetensors()(pruned, folder)
    adapter.save(model, tmp_path / "dense")
    reference = adapter.load(open_source(str(tmp_path / "dense"), Path.cwd()), torch.float16, "cpu")
    again = ecoflap.load_model(folder, dtype=torch.float16)
    assert kinds(again) == kinds(reference)
    assert bits(again) == bits(reference)


@pytest.mark.parametrize("name", [name for name in WHOLE if name in ("t5", "clip", "open_clip", "timm_vit")])
def test_its_processor_comes_with_the_adapter(name: str, folder: Path):
    pruned = half_pruned(name)
    adapter = pruned.adapter
    Safetensors()(pruned, folder)
    another = type(adapter)()
    ecoflap.load_model(folder, adapter=another)
    assert another.processor is not None


@pytest.mark.parametrize("name", [name for name in WHOLE if name in ("llama-tied", "timm_eva", "open_clip")])
def test_a_run_begins_from_a_packed_folder(name: str, folder: Path, tmp_path: Path):
    pruned = half_pruned(name)
    adapter = pruned.adapter
    SMALL(pruned, folder)
    done = ecoflap.run(
        {
            "version": 1,
            "model": str(folder),
            "sparsity": 0.75,
            "prune": "magnitude",
            "allocate": "uniform",
            "export": ["safetensors"],
        },
        processor=adapter.processor,
        folder=tmp_path / "run",
    )
    assert done.report.sparsity == pytest.approx(0.75, abs=0.01)
    again = ecoflap.load_model(tmp_path / "run" / "exports" / "safetensors")
    assert bits(again) == bits(done.model)


@pytest.fixture
def llama(folder: Path) -> Path:
    SMALL(half_pruned("llama"), folder)
    return folder


@needs_llama
def test_the_folder_is_what_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(llama)
    ecoflap.load_model(".")
    with pytest.raises(FormatError, match="is not a folder"):
        ecoflap.load_model(f"{FILE}.index.json")
    with pytest.raises(FormatError, match="is not a folder"):
        ecoflap.load_model("nowhere")


@needs_llama
def test_a_folder_without_packed_weights(tmp_path: Path):
    pruned = half_pruned("llama")
    pruned.adapter.save(pruned.model, tmp_path / "dense")
    with pytest.raises(FormatError, match="holds no packed file"):
        ecoflap.load_model(tmp_path / "dense")


@needs_llama
def test_a_truncated_a_changed_and_a_missing_shard_are_refused(llama: Path):
    first, second = sorted(llama.glob("*-of-*.safetensors"))[:2]
    whole = first.read_bytes()
    first.write_bytes(whole[:-100])
    with pytest.raises(FormatError, match=first.name):
        ecoflap.load_model(llama)
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="damaged"):
        ecoflap.load_model(llama)
    first.write_bytes(whole)
    ecoflap.load_model(llama)
    second.unlink()
    with pytest.raises(FormatError, match=f"lacks 1 of .*{second.name}"):
        ecoflap.load_model(llama)


@needs_llama
def test_dense_weights_beside_the_packed_ones_are_refused(llama: Path):
    pruned = half_pruned("llama")
    pruned.adapter.save(pruned.model, llama.parent / "dense")
    shutil.copy(llama.parent / "dense" / "model.safetensors", llama)
    with pytest.raises(ModelError, match=r"holds packed weights and dense ones \(model.safetensors\)"):
        ecoflap.load_model(llama)


@needs_llama
def test_a_configuration_of_another_model_is_refused(llama: Path):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "intermediate_size": 56}))
    with pytest.raises(ModelError, match=r"another model than its configuration describes.*48.*and 5 more differ"):
        ecoflap.load_model(llama)
    (llama / "config.json").unlink()
    with pytest.raises(ModelError, match=r"not what model they are of .*load_packed"):
        ecoflap.load_model(llama)


@needs_llama
def test_integers_in_place_of_weights_are_refused(folder: Path):
    pruned = half_pruned("llama")
    Safetensors()(pruned, folder)
    state = pruned.model.state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    save_packed(folder / FILE, {**state, name: (state[name] * 100).to(torch.int8)}, {})
    with pytest.raises(ModelError, match=rf"holds integers where the model has real numbers, .*: {name}\."):
        ecoflap.load_model(folder)


@needs_llama
def test_two_weights_that_the_configuration_ties_stay_two(llama: Path):
    """What the file says counts: a head of its own is not exchanged for the embedding."""
    config = json.loads((llama / "config.json").read_text())
    expected = bits(ecoflap.load_model(llama))
    (llama / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert bits(ecoflap.load_model(llama)) == expected


@needs_llama
def test_a_tied_head_is_one_weight_again(folder: Path):
    Safetensors()(half_pruned("llama-tied"), folder)
    again = ecoflap.load_model(folder)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert "lm_head.weight" in ecoflap.load_masks(folder)


@needs_llama
def test_it_can_be_exported_again(llama: Path, tmp_path: Path):
    again = ecoflap.load_model(llama, adapter=(adapter := ROWS["llama"].adapter()))
    (tmp_path / "twice").mkdir()
    SMALL(PrunedModel(again, adapter, ecoflap.load_masks(llama)), tmp_path / "twice")
    for file in sorted(llama.glob("*.safetensors*")):
        assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()


@needs_llama
def test_an_adapter_may_be_named_as_in_a_recipe(llama: Path):
    assert bits(ecoflap.load_model(llama, adapter="llama")) == bits(ecoflap.load_model(llama))


@needs_llama
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lama", r"no adapter named 'lama'\. Did you mean 'llama'\?"),
        ("my.adapters:Mine", r"an import path.*from my\.adapters import Mine, then adapter=Mine\(\)"),
        ("vit", r"  adapter: vit does not fit .*packed, a LlamaForCausalLM, which it does not know"),
    ],
)
def test_a_name_that_stands_for_no_adapter_of_the_model_is_told(llama: Path, name: str, told: str):
    with pytest.raises(EcoflapError, match=told):
        ecoflap.load_model(llama, adapter=name)


@pytest.mark.skipif("timm_vit" not in WHOLE, reason="timm is not of this environment")
def test_weights_whose_architecture_nobody_named(folder: Path):
    from ecoflap.adapters.eva_vit import EvaVitAdapter

    pruned = half_pruned("timm_vit")
    model = pruned.model
    noted, model.pretrained_cfg = model.pretrained_cfg, None
    Safetensors()(pruned, folder)
    with pytest.raises(ModelError, match="not which architecture and arguments make one"):
        ecoflap.load_model(folder)
    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
    known = EvaVitAdapter("vit_base_patch16_224", {**arguments, "num_classes": 5})
    assert bits(ecoflap.load_model(folder, adapter=known)) == bits(model)
    assert noted["architecture"] == "vit_base_patch16_224"


@pytest.mark.parametrize("name", [name for name in ROWS if not ROWS[name].is_whole_on_disk])
def test_a_folder_that_does_not_say_what_it_is_of(name: str, folder: Path):
    pruned = half_pruned(name)
    Safetensors()(pruned, folder)
    with pytest.raises(ModelError):
        ecoflap.load_model(folder)
    again = ROWS[name].build()
    again.load_state_dict(ecoflap.load_packed(folder))
    assert bits(again) == bits(pruned.model)


@pytest.mark.skipif("lavis BLIP-2 T5" not in ROWS, reason="LAVIS has an environment of its own")
def test_a_model_of_lavis_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from lavis import models

    pruned = half_pruned("lavis BLIP-2 T5")
    describe(pruned.model, {"name": "blip2_t5", "type": "pretrain_flant5xl"})
    Safetensors()(pruned, folder)
    asked = []

    def load(name, kind, is_eval, device):
        asked.append((name, kind))
        return ROWS["lavis BLIP-2 T5"].build(), {"eval": None}, {}

    monkeypatch.setattr(models, "load_model_and_preprocess", load)
    assert bits(ecoflap.load_model(folder)) == bits(pruned.model)
    assert asked == [("blip2_t5", "pretrain_flant5xl")]


def test_parameters_without_weights_and_buffers_with_them():
    with without_weights():
        module = nn.BatchNorm1d(3)
        attention = nn.MultiheadAttention(8, 2)
    assert module.weight.is_meta
    assert all(parameter.is_meta for parameter in attention.parameters())
    assert torch.equal(module.running_var, torch.ones(3))
    assert not nn.Linear(2, 2).weight.is_meta


def test_threads_that_build_at_once_leave_each_others_models_alone():
    built, entered = {}, Barrier(2)

    def without():
        with without_weights():
            entered.wait()
            built["without"] = nn.Linear(2, 2)

    def beside():
        entered.wait()
        built["beside"] = nn.Linear(2, 2)

    threads = [Thread(target=one) for one in (without, beside)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built["without"].weight.is_meta
    assert not built["beside"].weight.is_meta

    def often():
        for _ in range(50):
            with without_weights():
                assert nn.Linear(2, 2).weight.is_meta

    threads = [Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not nn.Linear(2, 2).weight.is_meta


def test_without_weights_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), without_weights():
        _ = 1 / 0
    assert not nn.Linear(2, 2).weight.is_meta


@needs_llama
def test_a_library_that_loses_buffers_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch):
    """An adapter that builds on the meta device and fills that."""
    from ecoflap.core.packed.into_model import fill

    adapter = ROWS["llama"].adapter()
    source = open_source(str(llama), Path.cwd())
    with pytest.raises(ModelError, match=r"built without .*inv_freq"):
        fill(adapter.load(source, None, "meta"), llama)


@needs_llama
def test_weights_that_a_module_in_two_places_would_lose(tmp_path: Path):
    from ecoflap.core.packed.into_model import fill
    from ecoflap.core.packed.save_packed import save_packed

    apart = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    save_packed(tmp_path / FILE, apart.state_dict(), {})
    shared = nn.Linear(3, 3)
    with pytest.raises(ModelError, match=r"stores a\.weight and b.weight apart, which are one weight"):
        fill(nn.ModuleDict({"a": shared, "b": shared}), tmp_path / FILE)


@needs_llama
def test_inspect_takes_a_packed_folder_apart(llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    from ecoflap.core.cli.main import main

    monkeypatch.setattr("sys.argv", ["ecoflap", "inspect", str(llama)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    assert "language" in capsys.readouterr().out


@needs_llama
def test_a_copy_of_the_folder_stands_alone(llama: Path, tmp_path: Path):
    expected = bits(ecoflap.load_model(llama))
    shutil.move(llama, tmp_path / "elsewhere")
    assert bits(ecoflap.load_model(tmp_path / "elsewhere")) == expected


@pytest.fixture
def export(tmp_path: Path) -> Path:
    (tmp_path / "export").mkdir()
    weight = torch.rand(6, 16).add(1).masked_fill(~MASK, 0)
    state = {"embed": weight, "head": weight, "few": torch.ones(1, 2).masked_fill(~FEW, 0), "bias": torch.ones(6)}
    save_packed(tmp_path / "export" / "model.packed.safetensors", state, {"head": MASK, "few": FEW}, shard_bytes=1)
    return tmp_path / "export"


def test_masks_of_a_packed_export(export: Path):
    found = ecoflap.load_masks(export)
    assert list(found) == ["embed", "head", "few"]
    assert all(torch.equal(found[name], mask) for name, mask in (("embed", MASK), ("head", MASK), ("few", FEW)))
    assert list(ecoflap.load_masks(str(export / "model.packed.safetensors"))) == ["embed", "head", "few"]


def test_masks_of_a_run(tmp_path: Path):
    save_masks(tmp_path / "masks.safetensors", {"head": MASK})
    for named in (tmp_path, tmp_path / "masks.safetensors", str(tmp_path)):
        found = ecoflap.load_masks(named)
        assert list(found) == ["head"]
        assert torch.equal(found["head"], MASK)


def test_what_holds_no_masks_is_refused(tmp_path: Path, export: Path):
    with pytest.raises(FormatError, match=r"holds no masks: it has neither masks\.safetensors"):
        ecoflap.load_masks(tmp_path)
    with pytest.raises(FormatError, match="there is no such file"):
        ecoflap.load_masks(tmp_path / "nowhere")
    shard = min(export.glob("*-of-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FormatError, match=shard.name):
        ecoflap.load_masks(export)


def exported_in(run: Path, name: str = "safetensors") -> Path:
    """Export into a folder as a run has it, with the list of its files."""
    (folder := run / "exports" / name).mkdir(parents=True)
    SMALL(half_pruned("llama"), folder)
    (folder / "README.md").write_text("As it was exported.")
    write_sums(folder)
    return folder


@needs_llama
def test_what_is_not_read_may_be_edited_and_added(tmp_path: Path):
    folder = exported_in(tmp_path)
    expected = bits(ecoflap.load_model(folder))
    (folder / "README.md").write_text("Of somebody who knows more.")
    (folder / "notes.txt").write_text("x")
    (folder / "figure.png").write_bytes(b"x")
    (folder / "LICENSE").write_text("x")
    assert bits(ecoflap.load_model(folder)) == expected
    (folder / "README.md").unlink()
    assert bits(ecoflap.load_model(folder)) == expected


@needs_llama
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.txt"])
def test_what_may_be_read_is_as_it_was_written(name: str, tmp_path: Path):
    """Other settings, whether they were changed or added, would make another model of the same weights."""
    folder = exported_in(tmp_path)
    text = (folder / name).read_text() if (folder / name).is_file() else "{}"
    (folder / name).write_text(f"{text}\n")
    with pytest.raises(FormatError, match=rf"{name} was added|{name} is not what was written") as refused:
        ecoflap.load_model(folder)
    assert "or, if it was changed on purpose, delete SHA256SUMS" in str(refused.value)


@needs_llama
def test_a_setting_that_is_gone_is_missed(tmp_path: Path):
    folder = exported_in(tmp_path)
    (folder / "generation_config.json").unlink()
    with pytest.raises(FormatError, match=r"generation_config\.json is missing"):
        ecoflap.load_model(folder)


@needs_llama
def test_weights_that_were_saved_over_an_export_are_the_reason(tmp_path: Path):
    folder = exported_in(tmp_path)
    ecoflap.load_model(folder).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"dense ones \(model\.safetensors\), as model\.save_pretrained.*--overwrite"):
        ecoflap.load_model(folder)


@needs_llama
def test_a_run_stands_for_its_export(tmp_path: Path):
    folder = exported_in(tmp_path / "run")
    assert bits(ecoflap.load_model(tmp_path / "run")) == bits(ecoflap.load_model(folder))
    for other in ("exports", "model", "exports/hugging_face"):
        (tmp_path / "run" / other).mkdir(exist_ok=True)
        with pytest.raises(FormatError, match=f"{other} holds no packed file.*Its run has one: name {folder}"):
            ecoflap.load_model(tmp_path / "run" / other)
    second = exported_in(tmp_path / "run", "safetensors-2")
    with pytest.raises(FormatError, match=f"several: name {folder} or {second}"):
        ecoflap.load_model(tmp_path / "run")


@needs_llama
def test_a_run_without_a_packed_export(tmp_path: Path):
    pruned = half_pruned("llama")
    pruned.adapter.save(pruned.model, tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.yaml").write_text("")
    with pytest.raises(FormatError, match=f"no packed file.* `ecoflap export {tmp_path / 'run'} --to safetensors`"):
        ecoflap.load_model(tmp_path / "run")
    with pytest.raises(FormatError, match=r"dense checkpoint: load it .*from_pretrained, and ecoflap\.pack_model"):
        ecoflap.load_model(tmp_path / "run" / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"no packed file.*The exporter safetensors writes one"):
        ecoflap.load_model(tmp_path / "empty")


@needs_llama
def test_a_type_may_be_named_as_recipes_do(llama: Path):
    assert ecoflap.load_model(llama, dtype="bfloat16").dtype is torch.bfloat16
    assert ecoflap.load_model(llama, dtype="auto").dtype is ecoflap.load_model(llama).dtype
    with pytest.raises(ModelError, match=r"dtype is 'bf16'; it is a floating-point type of torch.*, its name, such as"):
        ecoflap.load_model(llama, dtype="bf16")


def test_a_damaged_packed_file_says_what_to_do(tmp_path: Path):
    file = tmp_path / "model.packed.safetensors"
    save_packed(file, {"a": torch.rand(6, 16)}, {})
    whole = file.read_bytes()
    for cut in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-8], whole[:40]):
        file.write_bytes(cut)
        with pytest.raises(FormatError, match=r"Fetch it anew, or export it anew: .* --overwrite\.$"):
            ecoflap.load_packed(file)
