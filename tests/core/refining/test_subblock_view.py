"""A sub-block of a pruned block, held against two whole models, plain hooks and autograd."""

import gc
import math
from contextlib import suppress
from weakref import ref

import pytest
import torch
from spec import spec

from ecoflap.core.contracts.events import Warned
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.nested import tensors_in
from ecoflap.core.refining.refine import refine_block

ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"


def real(batch):
    return batch["attention_mask"] > 0


def hooked(model, name, batch):
    """What a module of a whole model is given first, and returns."""
    seen = []

    def keep(module, args, kwargs, output):
        given = args[0] if args else kwargs["hidden_states"]
        seen.append((given.clone(), output[0] if isinstance(output, tuple) else output))

    handle = model.get_submodule(name).register_forward_hook(keep, with_kwargs=True)
    model(**batch, use_cache=False)
    handle.remove()
    (found,) = seen
    return found


def shares(output, target, batch):
    """The mean over real tokens of ‖f − t‖² / ‖t‖²."""
    norms = [torch.linalg.vector_norm(states[real(batch)].double(), dim=-1) for states in (output - target, target)]
    return ((norms[0] / norms[1]) ** 2).mean()


@torch.no_grad()
def trained_a_bit(subblock):
    for layer in subblock.layers:
        layer.weight.data.mul_(0.7)


def test_a_blocks_sub_blocks_are_its_attention_and_its_mlp(case):
    one = case()
    assert [each.name for each in one.view.subblocks] == [ATTENTION, MLP]
    assert [len(each.layers) for each in one.view.subblocks] == [4, 3]
    assert {layer.name for each in one.view.subblocks for layer in each.layers} == {layer.name for layer in one.layers}


def test_what_a_block_hands_on_is_held_as_it_was_recorded(case):
    """In bfloat16, not a second time in float32: a block gives its attention the angles that it was given."""
    one = case(dtype=torch.bfloat16)
    recorded = [id(tensor) for call in one.view._calls[0] for tensor in tensors_in([dict(call.kwargs)])]
    with one.view.opened():
        (call,) = one.view._calls_inside(one.view.block.module.self_attn, 0)
    angles = call.kwargs.get("position_embeddings")
    if angles is None:
        pytest.skip("this transformers makes the angles inside of the attention")
    assert {id(tensor) for tensor in angles} <= set(recorded)
    assert {tensor.dtype for tensor in angles} == {torch.bfloat16}


def test_its_inputs_are_what_is_pruned_and_trained_before_it_gives(case):
    one = case()
    with one.view.opened():
        attention, mlp = one.view.subblocks
        trained_a_bit(attention)
        with mlp.opened():
            for number, batch in enumerate(one.batches):
                given, returned = hooked(one.model, MLP, batch)
                for found, expected in ((mlp.inputs(number), given), (mlp.outputs(number), returned)):
                    states = [hidden.detach()[real(batch)] for hidden in (found[0], expected)]
                    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", [0, 1])
def test_its_objective_is_the_mean_share_of_squares_over_real_tokens(case, place):
    one = case()
    with one.view.opened():
        subblock = one.view.subblocks[place]
        with subblock.opened():
            for number, batch in enumerate(one.batches):
                target = hooked(one.dense, subblock.name, batch)[1]
                torch.testing.assert_close(
                    subblock.targets(number)[0][real(batch)], target[real(batch)].detach(), rtol=1e-5, atol=1e-6
                )
                expected = shares(hooked(one.model, subblock.name, batch)[1], target, batch)
                with subblock.objective(number) as error:
                    assert float(error.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_its_gradient_is_autograds_of_its_own_layers_alone(case):
    one = case()
    with one.view.opened():
        attention, mlp = one.view.subblocks
        with mlp.opened():
            mlp.add_gradient(1, 0.5)
            found = {layer.name: layer.parameter.grad.clone() for layer in mlp.layers}
            assert all(layer.parameter.grad is None for layer in attention.layers)
            target = mlp.targets(1)[0]
    output = hooked(one.model.requires_grad_(True), MLP, one.batches[1])[1]
    loss = 0.5 * shares(output, target, one.batches[1])
    parameters = dict(one.model.named_parameters())
    for name, gradient in found.items():
        (expected,) = torch.autograd.grad(loss, parameters[name], retain_graph=True)
        torch.testing.assert_close(gradient, expected * one.masks[name], rtol=1e-4, atol=1e-8)


def test_losses_inside_a_run_of_the_block_reach_what_runs_before_them(case):
    one = case()
    with one.view.opened():
        with one.view.objectives_inside(0) as errors:
            assert list(errors) == [ATTENTION, MLP]
            errors[MLP].backward()
        assert all(layer.parameter.grad is not None for layer in one.layers)
        found = {name: float(error.detach()) for name, error in errors.items()}
        of_attention = {layer.name: layer.parameter.grad.clone() for layer in one.view.subblocks[0].layers}
    for name, error in found.items():
        outputs = [hooked(model, name, one.batches[0])[1] for model in (one.model, one.dense)]
        assert error == pytest.approx(float(shares(*outputs, one.batches[0]).detach()), rel=1e-4)
    model = one.model.requires_grad_(True)
    loss = shares(
        hooked(model, MLP, one.batches[0])[1], hooked(one.dense, MLP, one.batches[0])[1].detach(), one.batches[0]
    )
    for name, gradient in of_attention.items():
        (expected,) = torch.autograd.grad(loss, dict(model.named_parameters())[name], retain_graph=True)
        torch.testing.assert_close(gradient, expected * one.masks[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_but_its_layers_changes_and_they_are_rounded(case, dtype):
    one = case(dtype=dtype)
    before = {name: value.data.clone() for name, value in one.model.named_parameters()}
    with one.view.opened():
        mlp = one.view.subblocks[1]
        with mlp.opened():
            optimiser = torch.optim.SGD(mlp.parameters, lr=0.7)
            mlp.add_gradient(0)
            optimiser.step()
        assert all(torch.equal(one.to(dtype).float(), one) for one in mlp.parameters)
    changed = {name for name, value in one.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {layer.name for layer in mlp.layers}
    for name in changed:
        assert torch.equal(dict(one.model.named_parameters())[name] != 0, before[name] != 0)


def test_an_error_leaves_the_weights_as_they_were(case):
    one = case()
    before = {layer.name: layer.weight.data.clone() for layer in one.layers}
    attention, mlp = one.view.subblocks
    with one.view.opened() as view, suppress(ZeroDivisionError), mlp.opened():
        trained_a_bit(mlp)
        raise ZeroDivisionError
    assert all(torch.equal(layer.weight, before[layer.name]) for layer in one.layers)
    with suppress(ZeroDivisionError), view.opened():
        with attention.opened():
            trained_a_bit(attention)
        raise ZeroDivisionError
    assert all(torch.equal(layer.weight, before[layer.name]) for layer in one.layers)


class Steps:
    """A step of plain gradient descent, up for the sub-blocks that are named."""

    each = "subblock"

    def __init__(self, *up):
        self.up, self.seen = up, []

    def __call__(self, view):
        self.seen.append((view.name, view.measure(view.held_out)))
        view.add_gradient(view.training[0])
        for parameter in view.parameters:
            parameter.data.sub_((-0.1 if view.name in self.up else 0.02) * parameter.grad)


def test_each_is_judged_by_itself_and_the_next_sees_what_became_of_it(case):
    kept, undone = case(), case()
    before = {layer.name: layer.weight.data.clone() for layer in undone.layers}
    refiners, done = [Steps(), Steps(ATTENTION)], []
    for one, refiner in zip((kept, undone), refiners, strict=True):
        events = []
        with one.view.opened():
            done.append(refine_block(one.view, spec("refiner", refiner), 0, events.append))
    assert [[(each.name, each.is_kept) for each in some] for some in done] == [
        [(ATTENTION, True), (MLP, True)], [(ATTENTION, False), (MLP, True)]
    ]  # fmt: skip
    assert [name for name, _ in refiners[0].seen] == [ATTENTION, MLP]
    assert refiners[0].seen[0] == refiners[1].seen[0]
    assert refiners[0].seen[1] != refiners[1].seen[1]  # its inputs are another attention's
    assert any(isinstance(event, Warned) and f"at {ATTENTION} did not lower" in event.message for event in events)
    for layer in undone.layers:
        assert torch.equal(layer.weight, before[layer.name]) == ("self_attn" in layer.name)


def test_where_one_ran_in_some_batches_alone_the_block_is_trained_as_a_whole(case):
    one, events = case(), []
    view = one.seen([one.inside[0], {ATTENTION: one.inside[1][ATTENTION]}, one.inside[2]])
    assert view.subblocks == ()
    with view.opened():
        (done,) = refine_block(view, spec("refiner", Steps()), 0, events.append)
    assert done.name == "model.layers.1"
    assert events[0].message.startswith("model.layers.1: Steps trains it as a whole: it has no two sub-blocks")


def test_where_one_gives_no_state_for_each_token_the_block_is_trained_as_a_whole(case):
    one = case()
    windows = [{**inside, MLP: [inside[MLP][0].unflatten(1, (5, 2))]} for inside in one.inside]
    assert one.seen(windows).subblocks == ()


def test_positions_of_all_samples_one_after_the_other_are_known_for_tokens(case):
    one = case()
    flat = [{**inside, MLP: [inside[MLP][0].flatten(0, 1)]} for inside in one.inside]
    mlp = one.seen(flat).subblocks[1]
    mask = real(one.batches[0])
    assert torch.equal(mlp._real(0, one.view._calls[0][0], flat[0][MLP][0]), one.inside[0][MLP][0][mask])


def test_one_that_runs_another_number_of_times_than_in_the_dense_model_is_refused(case):
    one = case()
    view = one.seen([{**inside, MLP: inside[MLP] * 2} for inside in one.inside])
    with (
        view.opened(),
        pytest.raises(ModelError, match=r"mlp: on calibration batch 0 it runs 1 times .* it ran 2 times.*each: block"),
        view.subblocks[1].opened(),
    ):
        pass


def test_what_a_blocks_view_holds_is_freed_with_it(case):
    """Its targets and inputs are as large as all that is recorded, and Python looks for circles when it likes."""
    one = case()
    with one.view.opened():
        refine_block(one.view, spec("refiner", Steps()), 0, lambda event: None)
    held = ref(one.view)
    gc.disable()
    one.view = None
    gone = held() is None
    gc.enable()
    assert gone


def test_one_that_is_infinitely_far_is_named(case):
    one = case()
    one.inside[0][MLP][0].fill_(math.inf)
    with one.view.opened(), pytest.raises(ModelError, match=rf"^{MLP}: as it was pruned"):
        refine_block(one.view, spec("refiner", Steps()), 0, lambda event: None)
