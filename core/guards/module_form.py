"""Holds a part to leaving a module as it was given, but for the numbers of its weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any, NamedTuple

from torch import Tensor, nn

from ecoflap.core.errors import ModelError, first_of

_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_post_accumulate_grad_hooks": "hook on gradients",
    "_state_dict_hooks": "hook on state dicts",
    "_state_dict_pre_hooks": "hook on state dicts",
    "_load_state_dict_pre_hooks": "hook on state dicts",
    "_load_state_dict_post_hooks": "hook on state dicts",
}
"""Where torch keeps the hooks of modules and tensors, and what a message calls each."""


_LET_BE = ("transformers.", "ecoflap.adapters.")
"""How the names of modules begin whose functions may be left behind as hooks."""


class _Fact(NamedTuple):
    """Names what is told of a module.

    :param of: The name of a tensor or a module inside of it; empty for itself.
    :param what: The attribute that is told, or the kind of a hook; empty where it is told which one it is.
    :param hook: The number of a hook.
    """

    of: str
    what: str = ""
    hook: int | None = None


@contextmanager
def form_kept(who: str, module: nn.Module, cure: str) -> Iterator[None]:
    """Refuse what puts other tensors or modules into a module, or leaves hooks or modes that were not there.

    :param who: The part, for the message.
    :param cure: What its author is to do instead.
    :raises ModelError: With what is other than it was.
    """
    changed_since = form_watched(module)
    yield
    changes = changed_since()
    if changes:
        raise ModelError(f"{who} left its module otherwise than it was given: {first_of(changes)}. {cure}")


def form_watched(module: nn.Module, *, of_buffers: bool = True, hooks_alone: bool = False) -> Callable[[], list[str]]:
    """Look at what a module is, and give what says later what is other than it was.

    :param of_buffers: Whether saved buffers are to be the same tensors.
    :param hooks_alone: Whether hooks are looked at and nothing else.
    """

    def form() -> dict[_Fact, Any]:
        facts = _form_of(module, of_buffers)
        return {fact: one for fact, one in facts.items() if fact.hook is not None} if hooks_alone else facts

    before = form()
    return lambda: list(dict.fromkeys(_changes(before, form())))


def _form_of(module: nn.Module, of_buffers: bool) -> dict[_Fact, Any]:
    """Tell what a module and all inside of it are; tensors, modules and functions are told by themselves."""
    form: dict[_Fact, Any] = {**_hooks_of_all()}
    for path, one in module.named_modules():
        form |= {_Fact(path, "training"): one.training, _Fact(path, "forward"): _forward_of(one), **_hooks(path, one)}
        for name, inside in {**one._modules, **one._parameters, **(_saved_buffers(one) if of_buffers else {})}.items():
            name = f"{path}.{name}" if path else name
            form[_Fact(name)] = inside
            if isinstance(inside, nn.Parameter):
                form |= {_Fact(name, "requires_grad"): inside.requires_grad, **_hooks(name, inside)}
    return form


def _changes(before: Mapping[_Fact, Any], now: Mapping[_Fact, Any]) -> Iterator[str]:
    """Say what is other than it was; of what has another in its place, that alone."""
    changed = [fact for fact in {**before, **now} if not (fact in before and fact in now and before[fact] is now[fact])]
    others = {fact.of for fact in changed if not fact.what}
    for fact in changed:
        if not fact.what or fact.of not in others:
            yield _sentence(fact, fact in before, fact in now, now.get(fact))


def _sentence(fact: _Fact, was: bool, is_there: bool, value: object) -> str:
    if fact.hook is not None:
        return f"a {fact.what} was {'taken from' if was else 'left on'} {fact.of or 'the module itself'}"
    name = ".".join(filter(None, (fact.of, fact.what)))
    if not (was and is_there):
        return f"{name} is {'new' if is_there else 'gone'}"
    if value is None or isinstance(value, bool):
        return f"{name} is {value}"
    kinds = {Tensor: "tensor", nn.Module: "module"}
    return f"{name} is another {next((word for kind, word in kinds.items() if isinstance(value, kind)), 'function')}"


def _saved_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Give the buffers that are saved with a model. Others its forward may make anew, as angles for longer texts."""
    return {name: one for name, one in module._buffers.items() if name not in module._non_persistent_buffers_set}


def _forward_of(module: nn.Module) -> object:
    """Give the function behind a module's forward, which somebody may have put another one in front of."""
    forward = vars(module).get("forward", getattr_static(type(module), "forward"))
    return getattr(forward, "__func__", forward)  # a method is bound anew each time that it is asked for


def _hooks_of_all() -> dict[_Fact, None]:
    """Name the hooks that run with every module there is, as ``register_module_forward_hook`` leaves them."""
    kept = ((what, getattr(nn.modules.module, f"_global{attribute}", None) or {}) for attribute, what in _HOOKS.items())
    return {_Fact("every module", f"{what} for all", number): None for what, hooks in kept for number in hooks}


def _hooks(of: str, one: nn.Module | Tensor) -> dict[_Fact, None]:
    """Name the hooks that are there, but for those of transformers and of adapters here.

    Models of transformers install theirs when they are first asked for hidden states or attentions, and those do
    nothing where they are not; an adapter mends a model's own forward by one, when it is first asked for what runs it.
    """
    kept = ((what, getattr(one, attribute, None) or {}) for attribute, what in _HOOKS.items())
    return {
        _Fact(of, what, number): None
        for what, hooks in kept
        for number, hook in hooks.items()
        if not str(getattr(hook, "__module__", "")).startswith(_LET_BE)
    }
