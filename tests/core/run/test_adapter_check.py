"""A run holds its adapter against its model before it does anything else, on its own data."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from family import redraw
from table import ROWS
from transformers_version import is_before

import ecoflap
from ecoflap.adapters.clip import ClipAdapter
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.checking.loaded import why_unread
from ecoflap.core.contracts.events import StageStarted
from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Tower
from ecoflap.core.pruning.calibration import SAMPLES_AT_A_GLANCE, TOKENS_AT_A_GLANCE, Calibration

OFFERED = pytest.mark.skipif(is_before("5"), reason="the generic adapters are for what transformers 5 has")


class Squares(LlamaAdapter):
    def loss(self, model, batch):
        return model(**batch, use_cache=False).logits.double().square().mean()


class Half(LlamaAdapter):
    def towers(self, model):
        language, head = super().towers(model)
        return [Tower("language", language.blocks[:1]), head]


class Writes(LlamaAdapter):
    """Writes into a weight where its loss is asked for."""

    def loss(self, model, batch):
        model.lm_head.weight.data.mul_(0.9)
        return super().loss(model, batch)


class WritesForTokens(LlamaAdapter):
    def tokens(self, model, batch, tower, call=0):
        model.lm_head.weight.data.mul_(0.9)
        return super().tokens(model, batch, tower, call)


class HooksWhereItCollates(LlamaAdapter):
    def collate(self, model, samples):
        model.lm_head.register_forward_hook(lambda module, given, output: output * 1.1)
        return super().collate(model, samples)


class AllPadding(LlamaAdapter):
    def tokens(self, model, batch, tower, call=0):
        return torch.zeros_like(super().tokens(model, batch, tower, call))


class OnlyTexts(ClipAdapter):
    def towers(self, model):
        return [tower for tower in super().towers(model) if tower.name != "vision"]


class Stranger(OnlyTexts):
    def matches(self, source):
        return False


def stages(folder):
    return [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]


def test_a_right_adapter_costs_two_forwards_and_says_nothing(plain, tmp_path, monkeypatch):
    forwards = []
    monkeypatch.setattr(LlamaAdapter, "loss", counting(LlamaAdapter.loss, forwards))
    monkeypatch.setattr(LlamaAdapter, "own_inputs", counting(LlamaAdapter.own_inputs, forwards))
    keys = {"score": None, "allocate": "uniform", "prune": "magnitude", "evaluate": None}
    done = ecoflap.run(plain(**keys), folder=tmp_path / "run")
    assert forwards == ["own_inputs", "loss", "own_inputs"]
    assert done.report.warnings == ()
    assert [stage["stage"] for stage in stages(tmp_path / "run")].count("check") == 1


def counting(method, calls):
    def counted(*given):
        calls.append(method.__name__)
        return method(*given)

    return counted


def test_a_loss_that_is_not_the_models_is_refused_before_anything_is_done(plain, pico_llama, pico_tokenizer, tmp_path):
    model = pico_llama()
    before = [parameter.clone() for parameter in model.parameters()]
    recipe = plain(model={"adapter": Squares})
    with pytest.raises(ModelError, match=r"^the loss of the adapter Squares is .* on a batch, and the model's own is"):
        ecoflap.run(recipe, model=model, processor=pico_tokenizer, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert all(map(torch.equal, model.parameters(), before))


class Untold(LlamaAdapter):
    """Has a loss of no logits and does not say so; what it is held against is its own."""

    def loss(self, model, batch):
        return model(**batch, use_cache=False).logits.double().square().mean()

    def own_inputs(self, model, batch):
        return None


def test_a_loss_of_no_logits_is_refused_before_dense_evaluation_and_scoring(
    plain, pico_llama, pico_tokenizer, heard_by, tmp_path
):
    heard, recipe = [], plain(model={"adapter": Untold}, refine=["distill"])
    given = {"model": pico_llama(), "processor": pico_tokenizer}
    with pytest.raises(ModelError, match=r"^the loss of Untold is no cross entropy .* by refine: \[reconstruct\]"):
        ecoflap.run(recipe, **given, folder=tmp_path / "run", registry=heard_by(heard.append))
    assert [event.stage for event in heard if isinstance(event, StageStarted)] == ["check"]
    (warning,) = ecoflap.run(recipe | {"refine": []}, **given, folder=tmp_path / "other").report.warnings
    assert warning.startswith("the adapter's loss was held against nothing: its own_inputs gives nothing of which")


class PassesOver(LlamaAdapter):
    """Reads no weight, for none of its names is the model's."""

    def load(self, source, dtype, device):
        model = super().load(source, dtype, device)
        if device != "meta":
            state = {f"module.{name}": one for name, one in model.state_dict().items()}
            redraw(model, seed=1)
            model.load_state_dict(state, strict=False)
        return model


class LeavesOut(LlamaAdapter):
    """Fills all parameters but one, which has no memory yet."""

    def load(self, source, dtype, device):
        model = super().load(source, dtype, device)
        norm = model.model.layers[1].post_attention_layernorm
        norm.weight = torch.nn.Parameter(norm.weight.to("meta"))
        return model


def test_a_load_that_leaves_a_parameter_without_numbers_is_refused_with_its_name(plain, tmp_path):
    named = r"model\.layers\.1\.post_attention_layernorm\.weight have no numbers: they are on the meta device as"
    with pytest.raises(ModelError, match=named):
        ecoflap.run(plain(model={"source": plain()["model"], "adapter": LeavesOut}), folder=tmp_path / "run")


class Misspells(LlamaAdapter):
    def towers(self, model):
        language, head = super().towers(model)
        return [replace(language, blocks=(replace(language.blocks[0], name="model.layer.0"),)), head]


def test_a_block_of_another_name_is_refused_before_anything_is_loaded(plain, tmp_path):
    said = r"by the name model\.layer\.0\.self_attn\.q_proj\.weight, of the block 'model\.layer\.0'\. Did you mean"
    with pytest.raises(ModelError, match=said):
        ecoflap.run(plain(model={"source": plain()["model"], "adapter": Misspells}), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Merges(LlamaAdapter):
    """Adds what another training has changed, a tenth of each weight, and holds all in a narrower type."""

    def load(self, source, dtype, device):
        model = super().load(source, dtype, device)
        if device != "meta":
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
                parameter.data = (parameter.data + 0.1 * parameter.data.std() * drawn).bfloat16()
        return model


@pytest.mark.parametrize(
    "keys", [{}, {"calibration": None, "score": None, "allocate": "uniform", "prune": "magnitude"}]
)
def test_an_adapter_that_reads_none_of_a_models_weights_is_warned_of(plain, tmp_path, keys):
    """It pruned what is random, and another in each process, without a word."""
    keys = {**keys, "evaluate": None, "export": None}

    def warnings(adapter):
        recipe = plain(model={"source": plain()["model"], "adapter": adapter}, **keys)
        return ecoflap.run(recipe, folder=tmp_path / adapter.__name__).report.warnings

    (told,) = warnings(PassesOver)
    assert re.match(r"the adapter PassesOver has loaded other numbers than .*safetensors holds: .* random", told)
    assert warnings(Merges) == ()


class PassesOverType(LlamaAdapter):
    def load(self, source, dtype, device):
        return super().load(source, torch.float32, device)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_adapter_that_loads_in_another_type_is_warned_of(plain, tmp_path, dtype):
    model = {"source": plain()["model"], "adapter": PassesOverType, "dtype": dtype}
    told = ecoflap.run(plain(model=model, evaluate=None, export=None), folder=tmp_path / "run").report.warnings
    if dtype == "float32":
        assert told == ()
    else:
        assert [one.partition(", in which")[0] for one in told] == [
            "the adapter PassesOverType was asked for weights in bfloat16 and has loaded them in float32"
        ]


def test_weights_are_looked_for_in_every_file_of_a_model(tmp_path):
    names = ["a.weight", "b.weight"]
    drawn = [torch.randn(32, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    best, last = dict(zip(names, drawn[:2], strict=True)), dict(zip(names, drawn[2:], strict=True))
    files = [tmp_path / "best.pt", tmp_path / "last.pt", tmp_path / "notes.txt", tmp_path / "pointer.safetensors"]
    files[3].write_text("version https://git-lfs.github.com/spec/v1")
    torch.save(best, files[0]), torch.save({"model": last}, files[1])
    assert why_unread("Mine", files, last, names) is None
    assert why_unread("Mine", files, {"other.weight": drawn[0]}, ["other.weight"]) is None
    random = {name: torch.randn(32, 64, generator=torch.Generator().manual_seed(9)) for name in names}
    assert "best.pt holds: a.weight has none of its own there, nor any of the 2" in why_unread(
        "Mine", files, random, names
    )
    nothing = {name: torch.zeros(32, 64) for name in names}
    assert why_unread("Mine", files, nothing, names) is not None


def test_blocks_that_are_forgotten_are_refused_with_what_is_covered(plain, tmp_path):
    with pytest.raises(ModelError) as caught:
        ecoflap.run(plain(model={"source": plain()["model"], "adapter": Half}), folder=tmp_path / "run")
    assert str(caught.value).startswith(
        "the layers of the adapter Half hold 7,680 of the 23,040 weights in blocks that run. "
        "model.layers: 2 of its 3 blocks run and are in no tower (1, 2), with 14 matrices of 15,360 weights"
    )


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (Writes, r"lm_head\.weight was written into"),
        (WritesForTokens, r"lm_head\.weight was written into"),
        (HooksWhereItCollates, "a forward hook was left on lm_head"),
    ],
)
def test_one_that_changes_the_model_is_refused(plain, pico_llama, pico_tokenizer, tmp_path, adapter, said):
    """Without a scorer nobody noticed, and another model than was given was pruned."""
    recipe = plain(model={"adapter": adapter}, score=None, allocate="uniform", evaluate=None, export=None)
    with pytest.raises(ModelError, match=rf"^the adapter {adapter.__name__}, or the dataset \w+, has left .*: {said}"):
        ecoflap.run(recipe, model=pico_llama(), processor=pico_tokenizer, folder=tmp_path / "run")


@OFFERED
def test_a_model_that_exchanges_its_modules_as_it_runs_is_nobodys_mistake(plain, pico_tokenizer, tmp_path):
    """BigBird takes another attention for short texts, when it first has one."""
    from transformers import BigBirdConfig, BigBirdForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BigBirdConfig(vocab_size=64, **sizes, max_position_embeddings=64, is_decoder=True, pad_token_id=2)
    model = redraw(BigBirdForCausalLM(config)).eval()
    before = type(model.bert.encoder.layer[0].attention.self)
    recipe = plain(model={"adapter": "causal_lm"}, score=None, allocate="uniform", evaluate=None, export=None)
    ecoflap.run(recipe, model=model, processor=pico_tokenizer, folder=tmp_path / "run")
    assert type(model.bert.encoder.layer[0].attention.self) is not before


def test_one_for_which_everything_is_padding_is_refused(plain, pico_llama, pico_tokenizer, tmp_path):
    """Wanda would have chosen by norms of nothing."""
    recipe = plain(model={"adapter": AllPadding}, score=None, allocate="uniform", prune="wanda", evaluate=None)
    said = r"model\.layers\.0\.self_attn\.q_proj\.weight: no position of the tower it reads, 'language', counts in any"
    with pytest.raises(ModelError, match=said):
        ecoflap.run(recipe, model=pico_llama(), processor=pico_tokenizer, folder=tmp_path / "run")


@pytest.fixture
def pairs():
    """A recipe for a pico CLIP in memory, with a named adapter."""
    if "clip" not in ROWS:
        pytest.skip("transformers here is too old for CLIP")
    import pico_clip

    def run(adapter, folder):
        recipe = {
            "version": 1,
            "model": {"adapter": adapter},
            "calibration": {"use": "table:Samples", "row": "clip", "samples": 2, "batch_size": 2},
            "sparsity": 0.5,
            "prune": "magnitude",
        }
        processor = pico_clip.processor()
        return ecoflap.run(recipe, model=pico_clip.clip(), processor=processor, folder=folder, allow_code=True)

    return run


def test_a_tower_that_an_adapter_leaves_alone_is_warned_of(pairs, tmp_path):
    (warning,) = pairs(OnlyTexts, tmp_path / "run").report.warnings
    assert warning.startswith(
        "the layers of the adapter OnlyTexts hold 14,336 of the 28,672 weights in blocks that run. "
        "vision_model.encoder.layers runs and is in no tower: 2 blocks of CLIPEncoderLayer"
    )


def test_and_refused_where_the_adapter_was_named_for_a_model_that_it_does_not_know(pairs, tmp_path):
    with pytest.raises(ModelError) as caught:
        pairs(Stranger, tmp_path / "run")
    told, way_out = caught.value.problems
    assert told.startswith(
        f"model.adapter: {__name__}:Stranger does not fit this CLIPModel, which it does not know: the l"
    )
    assert way_out == "Without model.adapter, the adapter that knows the model is looked for."


@pytest.mark.skipif(find_spec("transformers.models.granite") is None, reason="this transformers has no Granite")
def test_llama_on_a_model_that_scales_its_logits(plain, pico_tokenizer, tmp_path):
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GraniteConfig(vocab_size=64, **sizes, num_key_value_heads=2, logits_scaling=8.0, pad_token_id=2)
    redraw(GraniteForCausalLM(config)).save_pretrained(tmp_path / "granite")
    pico_tokenizer.save_pretrained(tmp_path / "granite")
    with pytest.raises(
        ModelError, match=r"granite, a GraniteForCausalLM, which it does not know: the loss of the adap"
    ):
        ecoflap.run(plain(model={"source": str(tmp_path / "granite"), "adapter": "llama"}), folder=tmp_path / "run")


def test_without_data_there_is_nothing_to_check_on(plain, tmp_path):
    keys = {"calibration": None, "score": None, "allocate": "uniform", "prune": "magnitude", "evaluate": None}
    ecoflap.run(plain(**keys), folder=tmp_path / "run")
    assert "check" not in [stage["stage"] for stage in stages(tmp_path / "run")]


class Unready:
    needs = ()

    def __call__(self, weight, seen, budget, layer):
        raise LookupError("not yet")


def test_a_run_that_goes_on_does_not_check_again(plain, tmp_path):
    for _ in range(2):
        with pytest.raises(ecoflap.EcoflapError, match="not yet"):
            ecoflap.run(plain(prune=Unready), folder=tmp_path / "run")
    assert [stage["stage"] for stage in stages(tmp_path / "run")].count("check") == 1


def test_long_windows_are_cut_for_a_glance(pico_llama):
    samples = [ecoflap.Sample(tokens=torch.arange(3000) % 60) for _ in range(20)]
    batch = Calibration(samples, 16, LlamaAdapter()).first_batch(pico_llama(), "cpu")
    assert tuple(batch["input_ids"].shape) == (SAMPLES_AT_A_GLANCE, TOKENS_AT_A_GLANCE // SAMPLES_AT_A_GLANCE)
    assert torch.equal(batch["input_ids"][0], samples[0].tokens[: TOKENS_AT_A_GLANCE // 4])
