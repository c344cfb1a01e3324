"""What a refiner made worse is taken back, and said."""

import math
import re
from typing import ClassVar

import pytest
import torch
from spec import spec

from ecoflap.core.contracts.blame import PartError
from ecoflap.core.contracts.events import Refined, Warned
from ecoflap.core.errors import ModelError
from ecoflap.core.refining.refine import refine


class Step:
    """One step of plain gradient descent; with a negative rate, up."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, view):
        view.add_gradient(view.training[0])
        for parameter in view.parameters:
            parameter.data.sub_(self.rate * parameter.grad)


def weights(one):
    return {layer.name: layer.weight.data.clone() for layer in one.layers}


def refined(one, refiner):
    events = []
    with one.view.opened():
        done = refine(one.view, spec("refiner", refiner), 0, events.append)
    return done, events


def test_what_is_better_is_kept(case):
    one = case()
    before = weights(one)
    done, events = refined(one, Step(0.05))
    assert done.is_kept
    assert done.after["held_out"] < done.before["held_out"]
    assert done.after["training"] < done.before["training"]
    assert events == [done]
    assert isinstance(done, Refined)
    assert (done.name, done.refiner) == ("model.layers.1", "Step")
    assert all(not torch.equal(layer.weight, before[layer.name]) for layer in one.layers)
    with one.view.opened():
        assert one.view.measure(one.view.held_out) == pytest.approx(done.after["held_out"], rel=1e-5)


class StepAndLeave(Step):
    """A step, behind which torch follows no gradients any more."""

    def __call__(self, view):
        super().__call__(view)
        torch.set_grad_enabled(False)


class Yields(Step):
    """A step that nobody asks for."""

    def __call__(self, view):
        super().__call__(view)
        yield


class Waits(Step):
    """A step that is to be waited for."""

    async def __call__(self, view):
        super().__call__(view)


class YieldsAndWaits(Step):
    """One that is to be waited for, and asked for."""

    async def __call__(self, view):
        super().__call__(view)
        yield


@pytest.mark.parametrize("kind", [Yields, Waits, YieldsAndWaits])
def test_one_of_which_nothing_runs_is_refused(case, kind):
    said = rf"{kind.__name__}, at model\.layers\.1, gave <(generator|coroutine|async_generator) object .* without yield"
    with pytest.raises(ModelError, match=said):
        refined(case(), kind(0.05))


def test_whether_torch_follows_gradients_is_put_back(case):
    assert refined(case(), StepAndLeave(0.05))[0].is_kept
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (
            -0.05,
            r"did not lower the error on held-out calibration data \(0\.\d+, then \d+\.?\d*\), and was undone: "
            r"a smaller learning rate, or more calibration samples may help, or fewer steps$",
        ),
        (float("nan"), "gave NaN or infinite numbers, and was undone"),
        (1e25, "gave NaN or infinite numbers, and was undone"),  # weights are finite, and their products are not
    ],
)
def test_what_is_worse_is_undone(case, rate, told):
    one = case()
    before = weights(one)
    done, events = refined(one, Step(rate))
    assert not done.is_kept
    assert all(torch.equal(layer.weight, before[layer.name]) for layer in one.layers)
    (warning,) = [event for event in events if isinstance(event, Warned)]
    assert re.search(rf"^the refiner Step at model\.layers\.1 {told}", warning.message)


def test_a_block_that_is_infinitely_far_from_the_dense_one_is_named(case):
    one = case()
    with torch.no_grad():
        one.targets[0][0].fill_(math.inf)
    with pytest.raises(ModelError, match=r"model\.layers\.1: as it was pruned .* leave it out of refine:"):
        refined(one, Step(0.05))


def test_what_has_no_error_is_not_trained(case):
    """A block that was left whole: nothing can be better, and no advice helps."""
    one = case(target="own")
    for layer in one.layers:
        layer.weight.data.copy_(one.weights[layer.name])
    done, events = refined(one, lambda view: pytest.fail("trained"))
    assert events == [done]
    assert (done.is_kept, dict(done.before), dict(done.after)) == (
        False, {"training": 0.0, "held_out": 0.0}, {"training": 0.0, "held_out": 0.0}
    )  # fmt: skip


class Gentler(Step):
    """A step that knows a smaller one; ``rates`` are those that were taken."""

    rates: ClassVar[list[float]] = []

    def __call__(self, view):
        self.rates.append(self.rate)
        super().__call__(view)

    def gentler(self):
        return Gentler(self.rate / 100)


@pytest.mark.parametrize(
    ("rate", "rates"), [(0.05, [0.05]), (5.0, [5.0, 0.05]), (-5.0, [-5.0, -0.05, -0.0005]), (math.nan, [math.nan] * 3)]
)
def test_a_gentler_one_begins_where_the_first_did(case, rate, rates, monkeypatch):
    monkeypatch.setattr(Gentler, "rates", [])
    one, alone = case(), case()
    before = weights(one)
    done, events = refined(one, Gentler(rate))
    assert [str(taken) for taken in Gentler.rates] == [str(taken) for taken in rates]
    assert done.is_kept == (rates[-1] == 0.05)
    if done.is_kept:
        assert events == [done]
        refined(alone, Step(0.05))
        expected = weights(alone)
    else:
        undone = "was undone, also by smaller steps, 3 times in all: "
        cure = (
            "a smaller learning rate may help"
            if math.isnan(rate)
            else "more calibration samples may help, or fewer steps"
        )
        assert events[0].message.endswith(undone + cure)
        expected = before
    assert all(torch.equal(layer.weight, expected[layer.name]) for layer in one.layers)


def test_a_gentler_one_that_is_no_refiner_is_refused(case, monkeypatch):
    monkeypatch.setattr(Gentler, "gentler", lambda self: 3)
    told = r"^the refiner Gentler: its gentler\(\) gave 3; it gives a refiner, or None for none$"
    with pytest.raises(ModelError, match=told):
        refined(case(), Gentler(5.0))


def test_one_that_raises_is_named_with_its_block(case):
    class Raises:
        def __call__(self, view):
            raise ValueError("no")

    one = case()
    before = weights(one)
    with pytest.raises(PartError, match=r"the refiner Raises, at model\.layers\.1, raised ValueError: no\."):
        refined(one, Raises())
    assert all(torch.equal(layer.weight, before[layer.name]) for layer in one.layers)


class Anew(Step):
    """Puts new numbers in the place of each parameter's, of which one may lie where another's lay."""

    def __call__(self, view):
        view.add_gradient(view.training[0])
        for parameter in view.parameters:
            parameter.data = parameter.data - self.rate * parameter.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_numbers_in_the_place_of_a_parameters_are_taken(case, dtype):
    one, other = case(dtype=dtype), case(dtype=dtype)
    refined(one, Anew(0.01))
    refined(other, Step(0.01))
    assert all(torch.equal(weights(one)[name], found) for name, found in weights(other).items())


class Writes:
    """Trains a step, and does something else besides."""

    def __init__(self, what):
        self.what = what

    def __call__(self, view):
        Step(0.05)(view)
        self.what(view)


def scale_a_norm(view):
    with torch.no_grad():
        view.block.module.input_layernorm.weight.mul_(2)


def drop_a_mask(view):
    next(iter(view.masks.values())).fill_(value=True)


def widen(view):
    view.parameters[0].data = view.parameters[0].data.double()


def empty_dense_weights(view):
    for weight in view.dense_weights.values():
        weight.zero_()


def begin_from_dense_weights(view):
    view.parameters[0].data = view.dense_weights[view.layers[0].name]


def alike(view):
    """Two parameters of one shape."""
    first = view.parameters[0]
    return first, next(one for one in view.parameters[1:] if one.shape == first.shape)


def share_memory(view):
    first, second = alike(view)
    first.data = second.data


def exchange(view):
    first, second = alike(view)
    first.data, second.data = second.data, first.data


def leave_a_tensor_of_inference(view):
    with torch.inference_mode():
        view.parameters[0].data = view.parameters[0].data * 0.5


@pytest.mark.parametrize(("what", "said"), [
    (share_memory, r"has put one parameter in the memory of another.*copy_"),
    (exchange, r"has put one parameter in the memory of another"),
    (leave_a_tensor_of_inference, r"has put a tensor of torch\.inference_mode\(\).*under torch\.no_grad\(\)"),
    (empty_dense_weights, r"wrote into the dense weights of model\.layers\.\S+, .* and \d+ more, which it is given"),
    (begin_from_dense_weights, r"has put the dense weights of model\.layers\.1\.self_attn\.q_proj\.weight in the"),
    (scale_a_norm, r"wrote into input_layernorm\.weight, which it is given.*Have it train view\.parameters alone"),
    (drop_a_mask, r"wrote into the mask of model\.layers\.\S+, which it is given"),
    (widen, "has given a parameter another type or shape"),
])  # fmt: skip
def test_what_writes_to_anything_else_is_refused(case, what, said):
    """Nothing else is stored of a block, and a refiner that is undone has put nothing else back."""
    with pytest.raises(ModelError, match=rf"the refiner Writes, at model\.layers\.1,.*{said}"):
        refined(case(), Writes(what))


def clamp_what_is_within(view):
    """As a model's own forward may, of a parameter of its own."""
    with torch.no_grad():
        view.block.module.input_layernorm.weight.clamp_(-1e9, 1e9)


def test_a_write_that_leaves_every_bit_is_none(case):
    done, _ = refined(case(), Writes(clamp_what_is_within))
    assert done.is_kept


class Draws:
    """Trains on batches that it draws, and says what it drew."""

    def __init__(self):
        self.drawn = []

    def __call__(self, view):
        self.drawn.append(float(torch.rand(())))
        for _ in view.steps(3, torch.optim.SGD(view.parameters, lr=0.01)):
            self.drawn.append(float(torch.rand(())))
        Step(0.05)(view)


def test_what_it_draws_follows_from_the_seed_and_the_step(case):
    found = []
    for seed in (0, 1):
        pruned, one = case(), Draws()
        torch.manual_seed(seed)  # whatever was drawn before
        state = torch.get_rng_state()
        refined(pruned, one)
        found.append(one.drawn)
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    assert len(set(found[0])) == 4


class StepOnWhatJudges(Step):
    """A step by the batches that it is judged by."""

    def __call__(self, view):
        view.add_gradients([*view.training, *view.held_out])


class StopEarly(Step):
    """Steps for as long as batches that it leaves alone gain by them."""

    seen: ClassVar[list[float]] = []

    def __call__(self, view):
        for _ in range(2):
            super().__call__(view)
            self.seen.append(view.measure(view.held_out))
        with torch.no_grad(), view.objective(view.held_out[0]) as error:
            self.seen.append(float(error))


def test_no_refiner_trains_on_what_it_is_judged_by(case):
    one = case()
    assert not set(one.view.held_out) & set(one.view.training)
    with pytest.raises(ModelError, match=r"batch \d+, by which it is judged.*view\.training"):
        refined(one, StepOnWhatJudges(0.05))


def test_a_refiner_may_look_at_what_it_is_judged_by(case, monkeypatch):
    monkeypatch.setattr(StopEarly, "seen", [])
    one = case()
    done, _ = refined(one, StopEarly(0.02))
    assert StopEarly.seen[1:] == [pytest.approx(done.after["held_out"], rel=1e-4)] * 2


def test_a_single_batch_is_trained_on_and_judged_by(case):
    one = case()
    one.view.training = one.view.held_out = (0,)
    assert refined(one, Step(0.05))[0].is_kept
