"""A pruned block beside the dense one, held against two whole models and plain autograd."""

import pytest
import torch
from hidden_states import hidden_states

from ecoflap.core.disk.on_disk import lies_on_disk
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.nested import tensors_in


def real(batch):
    return batch["attention_mask"] > 0


def shares(output, target, batch):
    """The mean over real tokens of ‖f − t‖² / ‖t‖²."""
    norms = [torch.linalg.vector_norm(states[real(batch)], dim=-1) for states in (output - target, target)]
    return ((norms[0] / norms[1]) ** 2).mean()


def assert_close_where_real(found, expected, batch):
    torch.testing.assert_close(found[real(batch)].detach(), expected[real(batch)].detach(), rtol=1e-5, atol=1e-6)


def test_its_inputs_are_what_the_pruned_block_before_it_gives(case):
    one = case()
    states = [hidden_states(one.model, batch)[1].detach() for batch in one.batches]
    with one.view.opened():
        for number, state in enumerate(states):
            (found,) = one.view.inputs(number)
            assert_close_where_real(found, state, one.batches[number])


def test_where_the_record_is_on_a_disk_nothing_that_it_is_given_stays_in_memory(case, tmp_path):
    """Hidden states lie there already; what the model makes anew for the block is put beside them."""
    one, other = case(keep_in=tmp_path), case()
    given = list(tensors_in([[[*call.args, *call.kwargs.values()] for call in calls] for calls in one.view._calls]))
    assert len(given) > len(one.batches)
    assert all(map(lies_on_disk, given))
    with one.view.opened(), other.view.opened():
        for number in range(len(one.batches)):
            assert torch.equal(one.view.outputs(number)[0], other.view.outputs(number)[0])


def test_its_outputs_are_those_of_the_pruned_model(case):
    one = case()
    states = [hidden_states(one.model, batch)[2].detach() for batch in one.batches]
    with one.view.opened():
        for number, state in enumerate(states):
            (found,) = one.view.outputs(number)
            assert_close_where_real(found, state, one.batches[number])


def test_its_targets_are_those_of_the_dense_model(case):
    one = case()
    with one.view.opened():
        for number, batch in enumerate(one.batches):
            assert_close_where_real(one.view.targets(number)[0], hidden_states(one.dense, batch)[2], batch)


def test_its_own_target_is_the_dense_block_on_the_inputs_it_has(case):
    one = case("own")
    mixed = one.model  # block 0 pruned, block 1 dense
    pruned = {layer.name: layer.weight.data.clone() for layer in one.layers}
    for layer in one.layers:
        layer.weight.data.copy_(dict(one.dense.named_parameters())[layer.name])
    states = [hidden_states(mixed, batch)[2].detach() for batch in one.batches]
    for layer in one.layers:
        layer.weight.data.copy_(pruned[layer.name])
    with one.view.opened():
        for number, state in enumerate(states):
            assert_close_where_real(one.view.targets(number)[0], state, one.batches[number])


@pytest.mark.parametrize("target", ["dense", "own"])
def test_its_objective_is_the_mean_share_of_squares_over_real_tokens(case, target):
    one = case(target)
    outputs = [hidden_states(one.model, batch)[2].detach().double() for batch in one.batches]
    with one.view.opened():
        targets = [one.view.targets(number)[0].double() for number in range(3)]
        for number, batch in enumerate(one.batches):
            with one.view.objective(number) as error:
                assert float(error.detach()) == pytest.approx(
                    float(shares(outputs[number], targets[number], batch)), rel=1e-4
                )


def test_a_token_whose_dense_output_is_nothing_has_a_share_of_the_median(case):
    one = case()
    first = one.view._targets["dense"][0][0]
    first[0, 1] = 0
    output = hidden_states(one.model, one.batches[0])[2].detach().double()
    with one.view.opened(), one.view.objective(0) as error:
        target = one.view.targets(0)[0].double()
        errors, lengths = ((d**2).sum(-1)[real(one.batches[0])] for d in (output - target, target))
        assert int((lengths == 0).sum()) == 1
        lengths[lengths == 0] = 1e-4 * lengths.median()
        assert float(error.detach()) == pytest.approx(float((errors / lengths).mean()), rel=1e-4)


def test_an_error_is_as_large_however_long_a_token_is(case):
    """One token a thousand times as long, with an error a thousand times as large, is one token."""
    one, other = case(), case()
    with one.view.opened():
        output, target = one.view.outputs(0)[0].detach(), one.view.targets(0)[0]
        errors, lengths = one.view._errors_and_lengths(0, one.view._calls[0][0], output, target)
    with other.view.opened():
        output[0, 1] *= 1000
        target[0, 1] *= 1000
        longer, lengths_of_longer = other.view._errors_and_lengths(0, other.view._calls[0][0], output, target)
    torch.testing.assert_close(longer / lengths_of_longer, errors / lengths)


def test_of_a_block_that_is_called_several_times_the_median_is_that_of_all_calls(case):
    one = case()
    (call,), target = one.view._calls[0], one.view._targets["dense"][0][0]
    targets = [target, target, target * 1e-4]  # most tokens are long
    one.view._targets["dense"][0][:] = targets
    outputs = [other + torch.randn_like(other) * 1e-3 for other in targets]
    with one.view.opened():
        error = one.view.error_of(0, [call, call, call], outputs)
    kept = real(one.batches[0])
    squares = [
        torch.cat([each.double().square().sum(-1)[kept] for each in those])
        for those in ([given - wanted for given, wanted in zip(outputs, targets, strict=True)], targets)
    ]
    least = 1e-4 * squares[1].sort().values[(len(squares[1]) - 1) // 2]  # torch's median of an even count is the lower
    assert least > squares[1].min()
    assert float(error) == pytest.approx(float((squares[0] / squares[1].clamp_min(least)).mean()), rel=1e-4)


def test_its_gradient_is_autograds_under_the_mask(case):
    one = case()
    with one.view.opened():
        one.view.add_gradient(0, 0.5)
        found = {layer.name: layer.parameter.grad.clone() for layer in one.layers}
        target = one.view.targets(0)[0]
    model = one.model.requires_grad_(True)
    output = hidden_states(model, one.batches[0])[2]
    loss = 0.5 * shares(output, target, one.batches[0])
    parameters = dict(model.named_parameters())
    for name, gradient in found.items():
        (expected,) = torch.autograd.grad(loss, parameters[name], retain_graph=True)
        torch.testing.assert_close(gradient, expected * one.masks[name], rtol=1e-4, atol=1e-8)


def test_nothing_but_its_layers_changes(case):
    one = case(dtype=torch.bfloat16)
    before = {name: value.data.clone() for name, value in one.model.named_parameters()}
    names = {layer.name for layer in one.layers}
    with one.view.opened():
        optimiser = torch.optim.SGD(one.view.parameters, lr=0.7)  # by 1.0 one weight is zero by chance
        one.view.add_gradient(0)
        optimiser.step()
    changed = {name for name, value in one.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == names
    for name in names:
        assert torch.equal(dict(one.model.named_parameters())[name] != 0, before[name] != 0)


def test_a_model_in_bfloat16_is_close_to_one_in_float32(case):
    with case(dtype=torch.bfloat16).view.opened() as narrow, case().view.opened() as wide:
        assert narrow.measure((0, 1)) == pytest.approx(wide.measure((0, 1)), rel=0.05)


def test_an_output_of_another_length_than_its_tower_is_refused(case, monkeypatch):
    one = case()
    monkeypatch.setattr(one.replay, "tokens", lambda number, tower, call: torch.ones(2, 4))
    with one.view.opened(), pytest.raises(ModelError, match=r"model\.layers\.1: its output \(2, 10, 32\) is not of"):
        one.view.measure((0,))
