"""An adapter that says something wrong is told what."""

from importlib.util import find_spec

import pytest
import torch
from family import redraw
from table import ROWS
from transformers_version import is_before

import ecoflap
from ecoflap import EcoflapError, Sample
from ecoflap.adapters.blip2 import Blip2Adapter
from ecoflap.adapters.clip import ClipAdapter
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.shared.matrices import matrices
from ecoflap.core.checking.against_model import UNCOMPARED
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Layer, Tower

SAMPLES = [Sample(tokens=torch.arange(3, 3 + length)) for length in (12, 7, 9)]
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def causal(family, **keys):
    """A pico model of transformers of a family, or skip where this version has none."""
    if find_spec(f"transformers.models.{family}") is None:
        pytest.skip(f"this version of transformers has no {family}")
    from transformers import AutoConfig, AutoModelForCausalLM

    return redraw(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **keys)))


def told(adapter, model, samples=SAMPLES):
    with pytest.raises(EcoflapError) as caught:
        ecoflap.check_adapter(adapter, model, samples)
    return caught.value.problems


def test_a_right_one_gives_its_anatomy_and_both_losses(pico_llama):
    model = pico_llama()
    found = ecoflap.check_adapter(LlamaAdapter(), model, SAMPLES)
    assert [tower.name for tower in found.towers] == ["language", "lm_head"]
    assert len(found.blocks) == 4
    batch = LlamaAdapter().collate(model, SAMPLES)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        assert found.own_loss == pytest.approx(float(model(**batch, labels=labels).loss), rel=1e-6)
    assert found.loss == pytest.approx(found.own_loss, rel=1e-6)
    assert found.notes == ()


def test_what_a_block_leaves_for_another_beside_its_output_is_told(pico_llama):
    """Of one batch alone what lies there is its own; of two it is the other's."""
    model, left = pico_llama(), []
    first, last = model.model.layers[0], model.model.layers[-1]

    class Leaves(type(first)):
        def forward(self, hidden_states, **given):
            left[:] = [hidden_states]
            return super().forward(hidden_states, **given)

    class Finds(type(last)):
        def forward(self, hidden_states, **given):
            return super().forward(hidden_states + left[0], **given)

    first.__class__, last.__class__ = Leaves, Finds
    (problem,) = [one for one in told(LlamaAdapter(), model) if one.startswith("the loss from model.layers.1 on is ")]
    assert problem.endswith("kept beyond it where it is `tapped`; what it leaves elsewhere is lost")


class Unsteady(LlamaAdapter):
    """Its loss is summed up in another order each time, as a GPU may."""

    share = 1e-6
    _times = 0

    def loss(self, model, batch):
        self._times += 1
        return super().loss(model, batch) * (1 + self.share * self._times)


class Unsteadier(Unsteady):
    share = 1e-3


def test_an_order_of_sums_is_another_loss_on_a_cpu_alone(pico_llama, monkeypatch):
    assert "the loss from model.layers.0 on is" in " ".join(told(Unsteady(), pico_llama()))
    monkeypatch.setattr("ecoflap.core.checking.check_adapter.device_of", lambda model: torch.device("cuda"))
    assert ecoflap.check_adapter(Unsteady(), pico_llama(), SAMPLES).blocks
    problems = " ".join(told(Unsteadier(), pico_llama()))
    assert "the loss from lm_head on is" in problems


class Unknown(LlamaAdapter):
    def own_inputs(self, model, batch):
        return None


def test_a_loss_that_cannot_be_compared_is_not_passed_in_silence(pico_llama):
    found = ecoflap.check_adapter(Unknown(), pico_llama(), SAMPLES)
    assert (found.own_loss, found.notes) == (None, (UNCOMPARED,))


def refuse_alone(batch):
    if len(batch["input_ids"]) == 1:
        raise DataError("it is a loss over pairs.")


class OfPairs(LlamaAdapter):
    def loss(self, model, batch):
        value = super().loss(model, batch)
        refuse_alone(batch)
        return value


class ReadsPairs(LlamaAdapter):
    def loss(self, model, batch):
        refuse_alone(batch)
        return super().loss(model, batch)


@pytest.mark.parametrize(("adapter", "block"), [(OfPairs, "lm_head"), (ReadsPairs, "model.layers.0")])
def test_where_no_sample_runs_alone_is_told(adapter, block, pico_llama):
    (note,) = ecoflap.check_adapter(adapter(), pico_llama(), SAMPLES).notes
    assert note == (
        f"from {block} on nothing says whether padding is seen, for a sample alone is refused: it is a loss over pairs."
    )


def test_a_caller_may_say_what_the_loss_is_held_against(pico_llama):
    def own_loss(model, batch):
        logits = model(**batch).logits[:, :-1]
        targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    assert ecoflap.check_adapter(Unknown(), pico_llama(), SAMPLES, own_loss).notes == ()
    with pytest.raises(EcoflapError, match=r"the loss of the adapter Unknown is .*, and the model's own is"):
        ecoflap.check_adapter(Unknown(), pico_llama(), SAMPLES, lambda *given: 1.01 * own_loss(*given))


def test_what_it_is_held_against_is_held_to_be_a_loss_too(pico_llama):
    with pytest.raises(EcoflapError, match=r"^what the adapter's loss is held against gave None; a tensor of one"):
        ecoflap.check_adapter(LlamaAdapter(), pico_llama(), SAMPLES, lambda model, batch: None)


def test_a_model_in_lower_precision_is_compared_in_float32(pico_llama):
    """In bfloat16 both losses would be rounded by a hundredth."""
    found = ecoflap.check_adapter(LlamaAdapter(), pico_llama(dtype=torch.bfloat16), SAMPLES)
    assert found.loss == pytest.approx(found.own_loss, rel=1e-6)


class Short(LlamaAdapter):
    def layers(self, block):
        return list(super().layers(block))[:-1] if block.tower == "language" else super().layers(block)


class Everything(LlamaAdapter):
    def tokens(self, model, batch, tower, call=0):
        return torch.ones_like(batch["attention_mask"]).to(torch.int8)


class Stray(LlamaAdapter):
    def layers(self, block):
        if block.name == "model.layers.0":
            block.module.stray = torch.nn.Linear(4, 4)
            return [*super().layers(block), Layer("model.layers.0.stray.weight", block.module.stray)]
        return super().layers(block)


class Detached(LlamaAdapter):
    def loss(self, model, batch):
        first = model.model.layers[0].mlp.up_proj.weight
        held, first.data = first.data, first.data
        with torch.no_grad():
            value = super().loss(model, batch)
        first.data = held
        return value + 0 * model.lm_head.weight.sum() if torch.is_grad_enabled() else value


class Drifting(LlamaAdapter):
    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        return super().loss(model, batch) + self.calls


class Squares(LlamaAdapter):
    def loss(self, model, batch):
        return model(**batch, use_cache=False).logits.double().square().mean()


class Half(LlamaAdapter):
    def towers(self, model):
        language, head = super().towers(model)
        return [Tower("language", language.blocks[:2]), head]


class Unlabelled(LlamaAdapter):
    def own_inputs(self, model, batch):
        return batch


@pytest.mark.parametrize(
    ("adapter", "problem"),
    [
        (Short, "model.layers.0.mlp.down_proj.weight is a matrix that layers() does not list, nor its like in 2 other"),
        (Everything, "model.layers.1.mlp.up_proj.weight: its inputs are others in a padded batch than alone"),
        (Stray, "model.layers.0 ran without these matrices being multiplied with anything"),
        (Detached, "model.layers.0.mlp.up_proj.weight: the loss does not depend on it"),
        (Drifting, "the loss from model.layers.1 on is"),
        (Squares, "the loss of the adapter Squares is 0.2"),
        (Half, "model.layers: 1 of its 3 blocks run and are in no tower (2), with 7 matrices of 7,680 weights; "),
        (Unlabelled, "LlamaForCausalLM.forward gave no loss for the adapter's own_inputs"),
    ],
)
def test_a_wrong_one_is_told_what(adapter, problem, pico_llama):
    assert problem in "\n".join(told(adapter(), pico_llama()))


@pytest.mark.parametrize(
    ("family", "keys"),
    [("granite", {"logits_scaling": 8.0}), ("cohere", {}), ("gemma2", {"head_dim": 8, "final_logit_softcapping": 1.0})],
)
def test_a_loss_that_leaves_out_what_the_model_does_to_its_logits(family, keys):
    """Everything else of these models is as in LLaMA, so that nothing but the loss shows it."""
    (problem,) = told(LlamaAdapter(), causal(family, **keys))
    assert "it is the loss of another model" in problem


def without(tower, adapter, processor):
    """An adapter of this family that forgets a tower."""

    class Forgetful(adapter):
        def towers(self, model):
            return [one for one in super().towers(model) if one.name != tower]

    made = Forgetful()
    made.processor = processor
    return made


@pytest.mark.skipif("clip" not in ROWS, reason="transformers here is too old for it")
def test_a_forgotten_vision_tower():
    import pico_clip

    (problem,) = told(without("vision", ClipAdapter, pico_clip.processor()), pico_clip.clip(), pico_clip.pairs(4))
    assert problem.startswith("vision_model.encoder.layers runs and is in no tower: 2 blocks of CLIPEncoderLayer with")


@pytest.mark.skipif("blip2_opt" not in ROWS, reason="transformers here is too old for it")
def test_a_forgotten_vision_tower_of_a_model_that_reads_it():
    import pico_blip2

    forgetful = without("vision", Blip2Adapter, pico_blip2.processor("opt"))
    problem = told(forgetful, pico_blip2.build("opt"), pico_blip2.captions(3))[0]
    assert problem.startswith("vision_model.encoder.layers runs and is in no tower: 2 blocks of Blip2EncoderLayer with")


needs_experts = pytest.mark.skipif(is_before("5"), reason="there each expert is a module of matrices")


class WithoutExperts(LlamaAdapter):
    def layers(self, block):
        return super().layers(block) if block.tower == "lm_head" else list(matrices(block))


class TwoAxes(LlamaAdapter):
    def layers(self, block):
        if block.tower == "lm_head":
            return super().layers(block)
        experts = block.module.mlp.experts
        biases = [name for name, bias in experts.named_parameters() if bias.ndim == 2]
        return [*matrices(block), *(Layer(f"{block.name}.mlp.experts.{name}", experts, name) for name in biases)]


@needs_experts
def test_forgotten_experts():
    found = told(WithoutExperts(), causal("mixtral", **EXPERTS))
    assert found == (
        "model.layers.0.mlp.experts.gate_up_proj holds 4 matrices of 96×32, which layers() does not list, nor its like "
        "in 2 other blocks (36,864 weights); left_out() may say why it is kept",
        "model.layers.0.mlp.experts.down_proj holds 4 matrices of 32×48, which layers() does not list, nor its like in "
        "2 other blocks (18,432 weights); left_out() may say why it is kept",
    )


class Excused(WithoutExperts):
    def left_out(self, model):
        return {name: "kept" for name, _ in model.named_parameters() if ".experts." in name}


@needs_experts
def test_experts_may_be_left_out_on_purpose():
    assert ecoflap.check_adapter(Excused(), causal("mixtral", **EXPERTS), SAMPLES).towers


def test_llama_itself_is_no_adapter_for_experts():
    with pytest.raises(EcoflapError, match=r"is not a LLaMA block: it has no mlp\.gate_proj, mlp\.up_proj"):
        ecoflap.check_adapter(LlamaAdapter(), causal("mixtral", **EXPERTS), SAMPLES)


def test_a_bias_of_two_axes_is_no_matrix():
    model = causal("gpt_oss", **EXPERTS, head_dim=8)
    assert not any("_bias" in problem for problem in told(WithoutExperts(), model))
    found = "\n".join(told(TwoAxes(), model))
    assert "model.layers.0.mlp.experts.down_proj_bias is listed by layers(), and nothing is multiplied by it" in found


class SavesOthers(LlamaAdapter):
    """Saves a layer with other bits, as one that rounds what it writes."""

    def save(self, model, folder):
        state = {name: one.detach().clone() for name, one in model.state_dict().items()}
        state["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
        torch.save(state, folder / "weights.pt")


class SavesNarrow(LlamaAdapter):
    def save(self, model, folder):
        torch.save({name: one.bfloat16() for name, one in model.state_dict().items()}, folder / "weights.pt")


class Renames(LlamaAdapter):
    """Saves under names of its own, which only its load could find again."""

    def save(self, model, folder):
        torch.save({f"mine.{name}": one for name, one in model.state_dict().items()}, folder / "weights.pt")
        model.config.save_pretrained(folder)


class LoadsRenamed(Renames):
    def __init__(self, model):
        self.model, self.loaded = model, 0

    def load(self, source, dtype, device):
        self.loaded += 1
        self.processor = "the one beside it"
        state = torch.load(source.path / "weights.pt")
        found = type(self.model)(self.model.config)
        found.load_state_dict({name.removeprefix("mine."): one for name, one in state.items()})
        return found


class SavesNothing(LlamaAdapter):
    def save(self, model, folder):
        pass


class SavesALink(LlamaAdapter):
    def save(self, model, folder):
        super().save(model, folder)
        (folder / "elsewhere.bin").symlink_to("/etc/hostname")


class CannotSave(LlamaAdapter):
    def save(self, model, folder):
        raise KeyError("name")


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (SavesOthers, "what save wrote: model.layers.1.mlp.up_proj.weight reads back other than it was written"),
        (SavesNarrow, "weight reads back other than it was written"),
        (Renames, "what save wrote: no file there has lm_head.weight under that name, and as a model it is not read: "),
        (
            SavesNothing,
            "what save wrote: no file there has lm_head.weight under that name, and as a model it is not re",
        ),
        (SavesALink, "what save wrote: a link and no file: elsewhere.bin. An adapter's save writes weights there"),
        (CannotSave, "the adapter CannotSave, saving the model for a trial, raised KeyError: 'name'"),
    ],
)
def test_what_is_saved_and_not_found_again_is_told(adapter, said, pico_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (problem,) = told(adapter(), pico_llama())
    assert said in problem
    assert not list(tmp_path.iterdir())
    assert str(tmp_path) not in problem


def test_what_only_load_finds_again_is_loaded_and_the_processor_stays(pico_llama):
    model = pico_llama()
    adapter = LoadsRenamed(model)
    adapter.processor = "its own"
    assert ecoflap.check_adapter(adapter, model, SAMPLES).notes == ()
    assert (adapter.loaded, adapter.processor) == (1, "its own")


def test_a_large_model_is_not_saved_and_a_note_says_so(pico_llama, monkeypatch):
    model = pico_llama()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    monkeypatch.setattr("ecoflap.core.checking.check_adapter.LARGEST_SAVED", size - 1)
    (note,) = ecoflap.check_adapter(SavesNothing(), model, SAMPLES).notes
    assert note.startswith("save was not tried, for the weights have 0.0 GB, and up to ")
    monkeypatch.setattr("ecoflap.core.checking.check_adapter.LARGEST_SAVED", size)
    assert "no file there has" in " ".join(told(SavesNothing(), model))


class Broken(LlamaAdapter):
    def towers(self, model):
        return model.nowhere


def test_code_that_raises_is_named(pico_llama):
    with pytest.raises(PartError, match="the adapter Broken, taking the model apart, raised AttributeError"):
        ecoflap.check_adapter(Broken(), pico_llama(), SAMPLES)
