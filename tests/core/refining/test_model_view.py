"""The pruned model beside the dense one, held against two whole models."""

import copy
from typing import ClassVar

import pytest
import torch
from spec import spec

from ecoflap import Anatomy, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import ModelError, WayOut
from ecoflap.core.ranks.ranks import ALONE
from ecoflap.core.refining.kept_steps import KeptSteps
from ecoflap.core.refining.model_view import ModelView, check_logits
from ecoflap.core.refining.refine import refine
from ecoflap.plugins.refiners.distill import Distill

ADAPTER = LlamaAdapter()


@pytest.fixture
def case(pico_llama):
    def make(dtype=torch.float32, pruned=(0, 1)):
        model = pico_llama(dtype=dtype)
        dense_model = copy.deepcopy(model)
        batches = [
            {"input_ids": torch.arange(3, 23).reshape(2, 10) + n, "attention_mask": torch.ones(2, 10).long()}
            for n in range(2)
        ]
        batches[1]["attention_mask"][1, 6:] = 0
        anatomy = Anatomy.of(ADAPTER.towers(model), ADAPTER.layers)
        dense = Replay(model, ADAPTER, batches, anatomy=anatomy)
        masks, layers = {}, []
        for index in pruned:
            dense.advance(index)
            for layer in anatomy.layers_of[anatomy.blocks[index].name]:
                masks[layer.name] = layer.weight.abs() > layer.weight.abs().float().median()
                layer.weight.data.mul_(masks[layer.name])
                layers.append(layer)
        return ModelView(dense, layers, masks), dense_model, model, batches

    return make


def expected_kl(dense, model, batch):
    """KL(dense ‖ model), a mean over the positions whose next token is real, in float64."""
    with torch.no_grad():
        p = dense(**batch, use_cache=False).logits[:, :-1].double().softmax(-1)
    q = model(**batch, use_cache=False).logits[:, :-1].double().softmax(-1)
    real = batch["attention_mask"][:, 1:] > 0
    return (p * (p / q).log()).sum(-1)[real].mean()


# Blocks behind the last pruned one are run, not recorded: they are the dense model's.
@pytest.mark.parametrize("pruned", [(0, 1), (0, 1, 2)])
def test_its_objective_and_gradient_are_those_of_two_models(case, pruned):
    view, dense, model, batches = case(pruned=pruned)
    with view.opened():
        for number in view.training:
            expected = expected_kl(dense, model, batches[number])
            wanted = torch.autograd.grad(expected, view.parameters)
            for parameter in view.parameters:
                parameter.grad = None
            found = view.add_gradient(number)
            assert found == pytest.approx(float(expected.detach()), rel=1e-4)
            for parameter, gradient in zip(view.parameters, wanted, strict=True):
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-7)
                assert (parameter.grad[parameter.data == 0] == 0).all()


def test_it_is_held_against_the_dense_model_by_any_divergence(case):
    view, dense, model, batches = case()

    def brier(expected, logits):
        return (expected.softmax(-1) - logits.softmax(-1)).square().sum(-1)

    with view.opened():
        for number in view.training:
            batch = batches[number]
            with torch.no_grad():
                p = dense(**batch, use_cache=False).logits[:, :-1].double().softmax(-1)
            q = model(**batch, use_cache=False).logits[:, :-1].double().softmax(-1)
            expected = (p - q).square().sum(-1)[batch["attention_mask"][:, 1:] > 0].mean()
            wanted = torch.autograd.grad(expected, view.parameters)
            for parameter in view.parameters:
                parameter.grad = None
            with view.held_against_dense(number, brier) as found:
                found.backward()
            assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
            for parameter, gradient in zip(view.parameters, wanted, strict=True):
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-7)


def centred(dense, logits):
    return (dense.sub_(dense.mean(-1, keepdim=True)) - logits).square().sum(-1)


def test_a_divergence_that_writes_into_the_dense_logits_is_refused(case):
    view = case()[0]
    with (
        view.opened(),
        pytest.raises(ModelError, match="the divergence centred wrote into the dense model's logits"),
        view.held_against_dense(0, centred),
    ):
        pass


def zero_a_matrix(view):
    attention = view.blocks[1][1].module.self_attn
    attention.q_proj.weight = torch.nn.Parameter(torch.zeros_like(attention.q_proj.weight))


def leave_a_hook(view):
    view.blocks[0][1].module.mlp.register_forward_hook(lambda module, given, output: output * 2)


def empty_dense_weights(view):
    view.dense_weights["one"].zero_()


def look(view):
    """Look at what a module gives, without a trace."""
    seen = []
    handle = view.blocks[0][1].module.mlp.register_forward_hook(lambda module, given, output: seen.append(output))
    view.measure(view.training)
    handle.remove()
    assert seen


@pytest.mark.parametrize(("what", "said"), [
    (zero_a_matrix, r"given: model\.layers\.1\.self_attn\.q_proj\.weight is another tensor\. .*\.data\.copy_"),
    (leave_a_hook, r"given: a forward hook was left on model\.layers\.0\.mlp\. .* handle\.remove\(\)"),
    (empty_dense_weights, "wrote into the dense weights of one, which it is given"),
    (look, None),
])  # fmt: skip
def test_a_refiner_leaves_the_model_as_it_was_given_but_for_its_numbers(case, what, said):
    view = case()[0]
    view.dense_weights = {"one": torch.ones(2, 2)}

    def steps(view):
        view.add_gradient(view.training[0])
        for parameter in view.parameters:
            parameter.data.sub_(0.05 * parameter.grad)
        what(view)

    with view.opened():
        if said is None:
            assert refine(view, spec("refiner", steps), 0, lambda event: None).is_kept
            return
        with pytest.raises(ModelError, match=rf"the refiner \S+, at the model, .*{said}"):
            refine(view, spec("refiner", steps), 0, lambda event: None)


def test_its_loss_is_the_models(case):
    view, _, model, batches = case()
    with view.opened():
        for number, batch in enumerate(batches):
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            expected = model(**batch, labels=labels, use_cache=False).loss
            assert float(view.loss(number).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_model_in_bfloat16_comes_back_in_it(case):
    view, _, model, _ = case(dtype=torch.bfloat16)
    names = {layer.name for layer in view.layers}
    before = {name: value.data.clone() for name, value in model.named_parameters()}
    with view.opened():
        assert view.measure((0, 1)) > 0
        optimiser = torch.optim.SGD(view.parameters, lr=1.0)
        view.add_gradient(0)
        optimiser.step()
    for name, value in model.named_parameters():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, before[name]) == (name not in names)
        assert name not in names or torch.equal(value != 0, before[name] != 0)


def test_a_loss_without_logits_is_refused(case, monkeypatch):
    view, _, _, batches = case()
    monkeypatch.setattr(LlamaAdapter, "loss", lambda self, model, batch: model(**batch).logits.square().mean())
    replay = Replay(view._dense.model, ADAPTER, batches, anatomy=view._dense.anatomy)
    with pytest.raises(ModelError, match="the loss of LlamaAdapter is no cross entropy of logits here"):
        check_logits(replay)


def test_and_nothing_is_trained_on_it_in_the_place_of_a_divergence(case, monkeypatch):
    """A run that goes on behind its plan is not checked again, and a later batch may lack the first one's labels."""
    view = case()[0]
    monkeypatch.setattr(LlamaAdapter, "loss", lambda self, model, batch: model(**batch).logits.square().mean())
    with view.opened(), pytest.raises(ModelError, match="the loss of LlamaAdapter is no cross entropy of logits here"):
        view.add_gradient(0)


def test_only_the_first_loop_of_a_try_takes_up_the_steps_that_were_kept(case, tmp_path, monkeypatch):
    monkeypatch.setattr(KeptSteps, "EVERY", 0.0)
    view = case()[0]
    view.kept = KeptSteps(tmp_path / "steps.safetensors", {}, ALONE, lambda done, count: None)
    with view.opened():
        optimiser = torch.optim.SGD(view.parameters, lr=0.1)
        view.begin_try(0)
        assert list(view.steps(4, optimiser)) == [0, 1, 2, 3]
        assert (tmp_path / "steps.safetensors").is_file()
        assert list(view.steps(4, optimiser)) == [0, 1, 2, 3]
        view.begin_try(0)
        assert list(view.steps(4, optimiser)) == [3]
        view.begin_try(1)
        assert view.failed_before() == 0
        assert list(view.steps(4, optimiser)) == [0, 1, 2, 3]
        assert view.failed_before() == 1


class Killed(WayOut):
    """Stands for a process that ends."""


class Distilled(Distill):
    """Ends at a step, in place of a process; ``taken`` are the steps that were taken, by their try's rate."""

    taken: ClassVar[list[tuple[float, int]]] = []
    ends_before: ClassVar[tuple[float, int] | None] = None

    def __call__(self, view):
        steps = view.steps

        def watched(count, optimiser):
            for step in steps(count, optimiser):
                if (self.learning_rate, step) == self.ends_before:
                    raise Killed
                yield step
                self.taken.append((self.learning_rate, step))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(view, "steps", watched)
            super().__call__(view)


@pytest.mark.parametrize("ends_before", [(1.0, 2), (0.25, 0), (0.25, 2)])
def test_a_try_that_is_cut_off_goes_on_behind_those_that_failed(case, tmp_path, monkeypatch, ends_before):
    """The first try, of a rate that spoils the model, is done again only where nothing of the second was kept yet."""
    monkeypatch.setattr(KeptSteps, "EVERY", 0.0)

    def refined(folder, ends_before=None):
        view = case()[0]
        monkeypatch.setattr(Distilled, "taken", [])
        monkeypatch.setattr(Distilled, "ends_before", ends_before)
        view.kept = KeptSteps(folder / "steps.safetensors", {}, ALONE, lambda done, count: None)
        with view.opened():
            done = refine(view, spec("refiner", Distilled(steps=3, learning_rate=1.0)), 0, lambda event: None)
            return done, [parameter.data.clone() for parameter in view.parameters]

    (tmp_path / "whole").mkdir()
    whole, expected = refined(tmp_path / "whole")
    tried = [rate for rate, step in Distilled.taken if step == 0]
    assert tried[:2] == [1.0, 0.25]
    with pytest.raises(Killed):
        refined(tmp_path, ends_before)
    done, found = refined(tmp_path)
    first = {(1.0, 2): (1.0, 2), (0.25, 0): (1.0, 2), (0.25, 2): (0.25, 2)}[ends_before]
    assert Distilled.taken[0] == first
    assert all(map(torch.equal, found, expected))
    assert (done.before, done.after, done.is_kept) == (whole.before, whole.after, whole.is_kept)
