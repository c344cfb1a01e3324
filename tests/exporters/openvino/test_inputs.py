"""What is fed to pruned layers, against hooks on their modules."""

import pytest
import torch
from exported import half_pruned
from table import ROWS

from ecoflap.exporters.openvino.inputs import fed_to


def hooked(pruned, batches):
    """max |x| over real tokens of each linear layer, by its parameter, from one forward of the whole model."""
    found = {}

    def see(name, inputs, real):
        rows = inputs.detach().reshape(-1, inputs.shape[-1])[real.reshape(-1)].abs().amax(0)
        found[name] = torch.maximum(found[name], rows) if name in found else rows

    for batch in batches:
        real, handles = batch["attention_mask"].bool(), []
        for name in pruned.masks:
            module = pruned.model.get_submodule(name.removesuffix(".weight"))
            handles.append(
                module.register_forward_pre_hook(lambda _, args, name=name, real=real: see(name, args[0], real))
            )
        with torch.no_grad():
            pruned.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for handle in handles:
            handle.remove()
    return found


def test_it_is_the_largest_of_real_tokens():
    pruned = half_pruned("llama")
    pruned.masks.pop("lm_head.weight")  # its loss reads some rows only
    samples = list(ROWS["llama"].samples(6))
    batches = [pruned.adapter.collate(pruned.model, samples[at : at + 3]) for at in (0, 3)]
    assert any(not batch["attention_mask"].all() for batch in batches)
    found, expected = fed_to(pruned, batches), hooked(pruned, batches)
    assert list(found) == list(pruned.masks)
    for name, fed in found.items():
        assert torch.allclose(fed.largest, expected[name], rtol=1e-5), name


def test_what_is_fed_the_same_is_divided_alike():
    pruned = half_pruned("llama")
    found = fed_to(pruned, [pruned.adapter.collate(pruned.model, list(ROWS["llama"].samples(2)))])
    inside = "model.layers.1.self_attn."
    q, k, v, o = (found[f"{inside}{name}_proj.weight"] for name in "qkvo")
    assert q is k is v
    assert o is not q
    weights = [pruned.model.get_parameter(f"{inside}{name}_proj.weight").detach() for name in "qkv"]
    assert torch.equal(q.heaviest, torch.cat(weights).abs().amax(0))
    assert "lm_head.weight" in found


@pytest.mark.parametrize("row", ["blip2_opt", "timm_eva"])
def test_models_of_images_too(row):
    """Fused q, k and v are one parameter with one input; a packed attention fires no hook."""
    pruned = half_pruned(row)
    found = fed_to(pruned, [pruned.adapter.collate(pruned.model, list(ROWS[row].samples(2)))])
    assert {name.partition("[")[0] for name in pruned.masks} == set(found)
    for name, fed in found.items():
        assert fed.largest.shape == fed.heaviest.shape == pruned.model.get_parameter(name).shape[1:]
