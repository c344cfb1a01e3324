"""What is left of a module other than it was given is refused with its name; numbers may change."""

from types import MethodType

import pytest
import torch
from spec import spec
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.refining.module_form import form_kept
from ecoflap.core.refining.refine import refine, refine_block


def doubled(module, given, output):
    return output * 2


class Inner(nn.Module):
    """A layer with a buffer that is saved and one that is not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("angles", torch.zeros(3), persistent=False)

    def forward(self, x):
        self.angles = torch.ones(3)  # as a model does for a text that is longer than those before
        return self.linear(x - self.mean) + self.angles


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.norm = nn.LayerNorm(3)

    def forward(self, x):
        return self.norm(self.inner(x))


def replace(module):
    module.inner.linear.weight = nn.Parameter(module.inner.linear.weight.detach() * 1.05)


def replace_a_module(module):
    module.inner.linear = nn.Linear(3, 3, bias=False)


def replace_a_buffer(module):
    module.inner.mean = torch.ones(3)


def add(module):
    module.inner.linear.bias = nn.Parameter(torch.ones(3))
    module.inner.scale = nn.Parameter(torch.ones(3))


def take_away(module):
    del module.norm


def patch(module):
    module.inner.forward = MethodType(lambda self, x: x, module.inner)


def hook_state(module):
    module.inner._register_state_dict_hook(lambda *given: None)


MISTAKES = [
    (replace, "inner.linear.weight is another tensor"),
    (replace_a_module, "inner.linear is another module, inner.linear.weight is another tensor"),
    (replace_a_buffer, "inner.mean is another tensor"),
    (add, "inner.linear.bias is another tensor, inner.scale is new"),
    (take_away, "norm is gone, norm.weight is gone, norm.bias is gone"),
    (patch, "inner.forward is another function"),
    (
        lambda module: module.train(),
        "training is True, inner.training is True, inner.linear.training is True and 1 more",
    ),
    (
        lambda module: module.norm.requires_grad_(False),
        "norm.weight.requires_grad is False, norm.bias.requires_grad is False",
    ),
    (lambda module: module.register_forward_hook(doubled), "a forward hook was left on the module itself"),
    (lambda module: module.inner.linear.register_forward_hook(doubled), "a forward hook was left on inner.linear"),
    (lambda module: module.inner.register_forward_pre_hook(print), "a forward pre-hook was left on inner"),
    (lambda module: module.inner.register_full_backward_hook(print), "a backward hook was left on inner"),
    (hook_state, "a hook on state dicts was left on inner"),
    (lambda module: module.norm.weight.register_hook(print), "a backward hook was left on norm.weight"),
    (lambda module: module.norm._forward_pre_hooks.clear(), "a forward pre-hook was taken from norm"),
]


@pytest.mark.parametrize(("mistake", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_what_is_other_than_it_was_is_named(mistake, said):
    module = Outer().eval()
    module.norm.register_forward_pre_hook(lambda module, given: None)
    with pytest.raises(ModelError) as refused, form_kept("the refiner X, at a block,", module):
        mistake(module)
    message = str(refused.value)
    assert message.startswith(f"the refiner X, at a block, left its module otherwise than it was given: {said}. What")
    assert message.endswith("take all else back before it returns: handle.remove()")


def behave(module):
    """Train in place, look by hooks, and take all else back."""
    handles = [module.inner.register_forward_hook(doubled), module.norm.weight.register_hook(lambda gradient: gradient)]
    module.train().norm.requires_grad_(False)
    module(torch.ones(2, 3)).sum().backward()
    module.inner.linear.weight.data.mul_(2)
    module.norm.weight.data = torch.zeros(3)
    module.eval().norm.requires_grad_(True)
    for handle in handles:
        handle.remove()


def bind_again(module):
    """As transformers does with what it has put something in front of for a while."""
    module.inner.forward = module.inner.forward


@pytest.mark.parametrize("what", [behave, bind_again])
def test_what_is_taken_back_is_no_change(what):
    module = Outer().eval()
    with form_kept("the refiner X, at a block,", module):
        what(module)


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
