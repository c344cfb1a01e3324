"""Holds a part that is given a whole model to leaving it as it was: all that comes next would be of another model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ecoflap.core.errors import EcoflapError, ModelError, first_of
from ecoflap.core.guards.module_form import form_watched, saved_buffers
from ecoflap.core.guards.untouched import modes_put_back, watched


class ChangedModelError(ModelError):
    """Says that a part has changed the model in memory, with which nothing more is to be done."""


@contextmanager
def left_as_given(who: str, model: nn.Module, cure: str, *, is_on_disk: bool) -> Iterator[None]:
    """Refuse what has changed a weight, a saved buffer, a module or a hook of a model; put back modes.

    :param who: The part, for the message.
    :param cure: What its author is to do instead.
    :param is_on_disk: Whether weights stay in their files, which nobody writes to, and are not read for this.
    :raises ChangedModelError: With what is other than it was, behind what the part itself was refused for.
    """
    changed_since = model_watched(model, {} if is_on_disk else saved_tensors(model))
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
        raise ChangedModelError(*refused, f"{sentence}: {first_of(changes, 3)}. {cure}")


def model_watched(model: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], list[str]]:
    """Look at a model, and give what says later what is other than it was.

    :param tensors: Those whose numbers are looked at, by name.
    """
    written_since, changed_since = watched(tensors, counting=False), form_watched(model)
    return lambda: [*(f"{name} was written into" for name in written_since()), *changed_since()]


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Give what is saved of a model, by name; what two names share once."""
    buffers = {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules()
        for name, buffer in saved_buffers(module).items()
        if buffer is not None
    }
    return {**dict(model.named_parameters()), **buffers}
