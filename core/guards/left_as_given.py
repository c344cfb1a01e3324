"""Holds a part that is given a whole model to leaving it as it was: all that comes next would be of another model."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import EcoflapError, ModelError, first_of
from ecoflap.core.guards.module_form import form_watched
from ecoflap.core.guards.untouched import modes_put_back, watched

_SMALL = 1 << 20
"""Bytes of a parameter that is read for this though its model stays in its files: a norm, a bias."""

_WRITTEN_BY_SAVING = ("architectures", "dtype", "torch_dtype", "transformers_version")


class ChangedModelError(ModelError):
    """Says that a part has changed the model in memory, with which nothing more is to be done."""


@contextmanager
def left_as_given(
    who: str, model: nn.Module, cure: str, *, is_on_disk: bool, runs_first: bool = False
) -> Iterator[None]:
    """Refuse what has changed a parameter, a module, a hook or a setting of a model; put back modes.

    :param who: The part, for the message.
    :param cure: What its author is to do instead.
    :param is_on_disk: Whether weights stay in their files, and large ones are not read for this.
    :param runs_first: Whether the model has not run before, at which some exchange modules themselves, as BigBird its
        attention for short texts: then modules may be others.
    :raises ChangedModelError: With what is other than it was, behind what the part itself was refused for.
    """
    changed_since = model_watched(model, is_on_disk=is_on_disk, hooks_alone=runs_first)
    refused: tuple[str, ...] = ()
    try:
        with modes_put_back(model):
            yield
    except EcoflapError as error:
        changes = changed_since()
        if not changes:
            raise
        refused = error.problems
    else:
        changes = changed_since()
    if changes:
        sentence = f"{who} has left the model, which others look at next, otherwise than it was given"
        raise ChangedModelError(*refused, f"{sentence}: {first_of(changes)}. {cure}")


def model_watched(
    model: nn.Module, *, is_on_disk: bool, besides: Collection[int] = (), hooks_alone: bool = False
) -> Callable[[], list[str]]:
    """Look at a model, and give what says later what is other than it was.

    Of buffers types alone are looked at: a model's own forward may count in one, or make one anew.

    :param is_on_disk: Whether weights stay in their files: of large ones types and shapes alone are looked at.
    :param besides: The ``id`` of each parameter whose numbers somebody else looks at.
    :param hooks_alone: Whether modules may be others, so that beside numbers hooks alone are looked at.
    """
    parameters = dict(model.named_parameters())
    read = {
        name: one
        for name, one in parameters.items()
        if id(one) not in besides and not one.is_meta and not (is_on_disk and one.nbytes > _SMALL)
    }
    types = {name: (one.dtype, one.shape) for name, one in parameters.items() if name not in read}
    buffers = _types_of_buffers(model)
    written_since = watched(read, counting=False)
    changed_since = form_watched(model, of_buffers=False, hooks_alone=hooks_alone)
    settings = {} if hooks_alone else _settings_of(model)

    def changes() -> list[str]:
        recast = [name for name, before in types.items() if (parameters[name].dtype, parameters[name].shape) != before]
        written = [f"{name} was written into" for name in (*written_since(), *recast)]
        found = _types_of_buffers(model)
        cast = [f"{name} is {found[name]}" for name, before in buffers.items() if found.get(name, before) != before]
        now = _settings_of(model) if settings else {}
        others = [name for name in {**settings, **now} if settings.get(name) != now.get(name)]
        return [*written, *cast, *changed_since(), *(f"{name} is {now.get(name, 'gone')}" for name in others)]

    return changes


def _types_of_buffers(model: nn.Module) -> dict[str, str]:
    """Name the types of buffers: ``model.float()`` casts them too, and back from a narrow type they are others."""
    return {name: dtype_name(one.dtype) for name, one in model.named_buffers()}


def _settings_of(model: nn.Module) -> dict[str, str]:
    """Write out the settings that models of transformers carry, and are saved with; none of any other model."""
    found: dict[str, str] = {}
    for name in ("config", "generation_config"):
        settings: dict[str, Any] = getattr(getattr(model, name, None), "to_dict", dict)()
        found |= {f"{name}.{key}": repr(value) for key, value in _of_users(settings).items()}
    return found


def _of_users(settings: Any) -> Any:
    """Leave out what transformers keeps for itself, and what it writes down where it saves a model."""
    if not isinstance(settings, dict):
        return settings
    kept = (key for key in settings if key not in _WRITTEN_BY_SAVING and not str(key).startswith("_"))
    return {key: _of_users(settings[key]) for key in kept}
