"""What is left of a module other than it was given is refused with its name; numbers may change."""

from types import MethodType

import pytest
import torch
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.guards.module_form import form_kept

CURE = "Have it take all else back"


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
    with pytest.raises(ModelError) as refused, form_kept("the refiner X, at a block,", module, CURE):
        mistake(module)
    message = str(refused.value)
    assert message.startswith(f"the refiner X, at a block, left its module otherwise than it was given: {said}. {CURE}")


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
    with form_kept("the refiner X, at a block,", module, CURE):
        what(module)


def test_a_hook_for_all_modules_is_refused():
    """It runs with every module there is, and lies in none."""
    left = []
    said = "a forward hook for all was left on every module"
    with pytest.raises(ModelError, match=said), form_kept("the part", Outer(), CURE):
        left.append(nn.modules.module.register_module_forward_hook(doubled))
    left[0].remove()
    with form_kept("the part", Outer(), CURE):
        nn.modules.module.register_module_forward_hook(doubled).remove()
