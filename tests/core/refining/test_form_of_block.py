"""A refiner that leaves a block other than it was given, but for the numbers of its weights, is refused."""

import pytest
import torch
from spec import spec
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.refining.refine import refine, refine_block


class Steps:
    """A step of plain gradient descent, and something else besides."""

    def __init__(self, what, each="block"):
        self.what, self.each = what, each

    def __call__(self, view):
        view.add_gradient(view.training[0])
        for parameter in view.parameters:
            parameter.data.sub_(0.02 * parameter.grad)
        self.what(view)


def zero_a_matrix(view):
    matrix = view.block.module.get_submodule(view.layers[0].name.removeprefix(f"{view.name}.").removesuffix(".weight"))
    matrix.weight = nn.Parameter(torch.zeros_like(matrix.weight))


def leave_a_hook(view):
    view.block.module.register_forward_hook(lambda module, given, output: output)


def look(view):
    seen = []
    handle = view.block.module.register_forward_hook(lambda module, given, output: seen.append(output))
    view.measure(view.training)
    handle.remove()
    assert seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("each", ["block", "subblock"])
@pytest.mark.parametrize(("what", "said"), [
    (zero_a_matrix, r"(self_attn\.)?q_proj\.weight is another tensor\. "),
    (leave_a_hook, r"a forward hook was left on the module itself\. "),
])  # fmt: skip
def test_a_refiner_that_leaves_another_form_is_refused(case, dtype, each, what, said):
    one = case(dtype=dtype)
    where = {"block": r"model\.layers\.1", "subblock": r"model\.layers\.1\.self_attn"}[each]
    with one.view.opened(), pytest.raises(ModelError, match=rf"the refiner Steps, at {where}, .* given: {said}"):
        refine_block(one.view, spec("refiner", Steps(what, each)), 0, lambda event: None)


@pytest.mark.parametrize("each", ["block", "subblock"])
def test_one_that_removes_its_hook_is_kept(case, each):
    looks, alone = case(), case()
    for one, what in ((looks, look), (alone, lambda view: None)):
        with one.view.opened():
            done = refine_block(one.view, spec("refiner", Steps(what, each)), 0, lambda event: None)
        assert all(each.is_kept for each in done)
    assert all(map(torch.equal, looks.model.parameters(), alone.model.parameters()))


def test_one_that_trains_sub_blocks_by_itself_leaves_the_block_as_it_was(case):
    def each_alone(view):
        for subblock in view.subblocks:
            with subblock.opened():
                Steps(lambda view: None)(subblock)

    one = case()
    with one.view.opened():
        assert refine(one.view, spec("refiner", each_alone), 0, lambda event: None).is_kept
