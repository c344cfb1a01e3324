"""Hold the adapter against the model where a run begins, on its own data: two forwards of one batch."""

from collections.abc import Iterator

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.against_model import AgainstModel, hold_against_model
from ecoflap.core.ranks.ranks import ALONE
from ecoflap.core.recipe.schema import Calibration
from ecoflap.core.refining.model_view import check_logits
from ecoflap.core.registry.named_adapter import knows, refusing_misfit
from ecoflap.core.run.stages import RunState

WARNED_OF = "stack"
"""What may be left to an adapter's author: which of a model's towers its adapter is for."""
CHECKED = ("stack", "blocks", "matrix", "no matrix")


def is_to_be_checked(state: RunState) -> bool:
    """Say whether a run has data to check its adapter on, and has not come past that before it was cut off."""
    return _data(state) is not None and state.ranks.first(
        lambda: not state.folder.plan.is_file() and not state.folder.is_pruned
    )


def check_adapter_on_data(state: RunState) -> None:
    """Refuse an adapter whose loss is not the model's own, or that lists a part of what it prunes only.

    A tower that runs and is not the adapter's is warned of, and refused where the adapter was named for a model that it
    does not know. A loss of no logits is refused where the whole model is to be refined by them.

    :raises ModelError: With everything that is wrong.
    """
    keys = _data(state)
    if keys is None or not is_to_be_checked(state):
        return
    adapter, source, named = state.prepared.adapter, state.prepared.source, state.recipe.model.adapter_name
    with state.log.stage("check"):
        replay = state.replay([state.data.first_batch(keys)], keys, ranks=ALONE)
        with refusing_misfit(adapter, named, source):
            found = hold_against_model(replay)
            state.model.refuse_changed(state.ranks)
            refused = [] if found.wrong_loss is None else [found.wrong_loss]
            is_strict = named is not None and not knows(adapter, source)
            for kind, sentence in _forgotten(found):
                if kind == WARNED_OF and not is_strict:
                    state.log.note(sentence)
                else:
                    refused.append(sentence)
            if refused:
                raise ModelError(*refused)
        if state.prepared.model_refiners:
            check_logits(replay)


def _data(state: RunState) -> Calibration | None:
    return state.recipe.calibration or state.recipe.score_calibration


def _forgotten(found: AgainstModel) -> Iterator[tuple[str, str]]:
    """Yield what is not covered, each with what the adapter covers in all."""
    covered, whole = found.coverage.shares()
    share = f"the layers of the adapter {found.adapter} hold {covered:,} of the {whole:,} weights in blocks that run"
    for one in found.coverage.forgotten():
        if one.kind in CHECKED:
            yield one.kind, f"{share}. {one.sentence}"
