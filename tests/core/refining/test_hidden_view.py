"""What is written into what a view hands out changes nothing of what a refiner is judged by."""

import copy

import pytest
import torch
from spec import spec

from ecoflap.core.refining.hidden_view import _least_length
from ecoflap.core.refining.refine import refine_block

ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"


@torch.no_grad()
def returned(model, name, batch):
    """What a module of a whole model returns."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, given, output: seen.append(output))
    model(**batch, use_cache=False)
    handle.remove()
    (found,) = seen
    return found[0] if isinstance(found, tuple) else found


def error(model, target_model, name, batch):
    """The mean over real tokens of ‖f − t‖² / ‖t‖², in float64."""
    real = batch["attention_mask"] > 0
    output, target = (returned(one, name, batch)[real].double() for one in (model, target_model))
    return float(((output - target).square().sum(-1) / target.square().sum(-1)).mean())


@pytest.mark.parametrize(
    ("lengths", "least"), [([0.0, 0.0, 0.0, 4.0, 8.0, 9.0], 8e-4), ([1.0, 3.0], 1e-4), ([0.0], 1.0)]
)
def test_a_token_of_no_length_is_held_against_a_share_of_what_others_have(lengths, least):
    assert _least_length(torch.tensor(lengths)) == pytest.approx(least)


class Steps:
    """A step of plain gradient descent, by a rate for all; then something is done to a batch's tensors."""

    def __init__(self, each, target, write, rate=0.02):
        self.each, self.target, self.write, self.rate = each, target, write, rate

    def __call__(self, view):
        numbers = (*view.training, *view.held_out)
        self.write(view, numbers)
        view.add_gradient(view.training[0])
        for parameter in view.parameters:
            parameter.data.sub_(self.rate * parameter.grad)
        self.write(view, numbers)


@torch.no_grad()
def claim(view, numbers):
    """Write what the pruned one gives in the place of what it is held against."""
    for number in numbers:
        for target, output in zip(view.targets(number), view.outputs(number), strict=True):
            target.copy_(output)


def centre(view, numbers):
    for number in numbers:
        for hidden in (*view.inputs(number), *view.targets(number, view.target)):
            hidden.sub_(hidden.mean(-1, keepdim=True))


def leave(view, numbers):
    pass


def refined(one, refiner):
    with one.view.opened():
        done = refine_block(one.view, spec("refiner", refiner), 0, lambda event: None)
    return [(each.name, each.before, each.after, each.is_kept) for each in done]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("write", [claim, centre])
@pytest.mark.parametrize(("each", "target"), [("block", "dense"), ("block", "own"), ("subblock", "dense")])
def test_what_a_refiner_writes_into_is_its_own(case, each, target, write, dtype):
    writes, leaves = case(target, dtype), case(target, dtype)
    found = refined(writes, Steps(each, target, write))
    assert found == refined(leaves, Steps(each, target, leave))
    assert [name for name, *_ in found] == ([ATTENTION, MLP] if each == "subblock" else ["model.layers.1"])
    assert all(is_kept for *_, is_kept in found)
    assert all(map(torch.equal, writes.model.parameters(), leaves.model.parameters()))


@pytest.mark.parametrize("target", ["dense", "own"])
@pytest.mark.parametrize("rate", [0.02, -0.5])
def test_it_is_judged_by_the_dense_models_own(case, target, rate):
    """Also where the refiner writes that nothing was lost."""
    one = case(target)
    dense = copy.deepcopy(one.dense)
    if target == "own":  # which is what the dense block gives on the inputs of the pruned one
        dense.model.layers[0].load_state_dict(one.model.model.layers[0].state_dict())
    (held_out,) = one.view.held_out
    before = error(one.model, dense, "model.layers.1", one.batches[held_out])
    trained = {}

    def keep(view, numbers):
        claim(view, numbers)
        trained.update({name: value.detach().clone() for name, value in one.model.named_parameters()})

    ((_, errors, after, is_kept),) = refined(one, Steps("block", target, keep, rate))
    assert errors["held_out"] == pytest.approx(before, rel=1e-4)
    assert is_kept == (rate > 0)
    one.model.load_state_dict(trained, strict=False)
    expected = error(one.model, dense, "model.layers.1", one.batches[held_out])
    assert after["held_out"] == pytest.approx(expected, rel=1e-4)


def test_each_call_gives_other_copies(case):
    one = case()
    with one.view.opened():
        for give in (one.view.inputs, one.view.targets):
            first = give(0)[0].clone()
            give(0)[0].zero_()
            assert torch.equal(give(0)[0], first)
