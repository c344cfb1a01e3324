"""Hold the adapter against the model where a run begins, on its own data: two forwards of one batch."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ecoflap.core.checking.against_model import UNCOMPARED, AgainstModel, hold_against_model
from ecoflap.core.checking.coverage import ForgottenKind
from ecoflap.core.checking.loaded import why_of_another_type, why_unread
from ecoflap.core.checking.saved import try_to_save
from ecoflap.core.dtypes import dtype_called
from ecoflap.core.errors import ModelError
from ecoflap.core.guards.left_as_given import left_as_given
from ecoflap.core.machine.part_code import is_ours
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.model.parameter_masks import parameter_and_part
from ecoflap.core.model.source import files_read
from ecoflap.core.ranks.ranks import ALONE
from ecoflap.core.recipe.schema import CalibrationKeys
from ecoflap.core.refining.model_view import check_logits
from ecoflap.core.registry.named_adapter import knows, refusing_misfit
from ecoflap.core.run.run_state import RunState

_CURE = "Have it look at the model alone, or do what it does to it where the adapter loads it"
WARNED_OF: ForgottenKind = "stack"
"""What may be left to an adapter's author: which of a model's towers its adapter is for."""
CHECKED: tuple[ForgottenKind, ...] = ("stack", "blocks", "matrix", "no matrix")
"""What a run looks for. Matrices outside all blocks are many a model's, such as its head, and ``check_adapter`` alone
tells an adapter's author of them."""


def is_to_be_checked(state: RunState) -> bool:
    """Say whether a run has anything to check its adapter by, and has not come past that before it was cut off."""
    has_any = _data(state) is not None or _saves_otherwise(state) or _loads_otherwise(state)
    return has_any and state.ranks.first(lambda: not state.folder.plan.is_file() and not state.folder.is_pruned)


def check_adapter_on_data(state: RunState) -> None:
    """Refuse an adapter whose loss is not the model's own, or that lists a part of what it prunes only.

    A tower that runs and is not the adapter's is warned of, and refused where the adapter was named for a model that it
    does not know. A loss of no logits is refused where the whole model is to be refined by them. So is, of a model in
    memory, an adapter that saves it so that nobody finds its weights again.

    :raises ModelError: With everything that is wrong.
    """
    if not is_to_be_checked(state):
        return
    keys = _data(state)
    with state.log.stage("check"):
        if _loads_otherwise(state):
            state.ranks.first(partial(_hold_against_files, state))
        if keys is not None:
            _hold_against_model(state, keys)
        if _saves_otherwise(state):
            state.ranks.first(partial(_try_to_save, state))


def _loads_otherwise(state: RunState) -> bool:
    """Say whether an adapter that does not come with ecoflap has read a folder: ours are held to that by tests."""
    folder = state.prepared.source.path
    return folder is not None and folder.is_dir() and not is_ours(type(state.prepared.adapter))


def _hold_against_files(state: RunState) -> None:
    layers = [layer.name for pool in state.prepared.pools for _, layer in pool.layers]
    names = {parameter_and_part(layer)[0] for layer in layers}
    adapter, read = type(state.prepared.adapter).__name__, state.model.get().state_dict()
    unread = why_unread(adapter, files_read(state.prepared.source), read, names)
    another = why_of_another_type(adapter, dtype_called(state.recipe.model.dtype), read, names)
    for told in filter(None, (unread, another)):
        state.log.note(told)


def _hold_against_model(state: RunState, keys: CalibrationKeys) -> None:
    adapter, source, named = state.prepared.adapter, state.prepared.source, state.recipe.model.adapter_name
    who = f"the adapter {type(adapter).__name__}, or the dataset {keys.data.use},"
    with refusing_misfit(adapter, named, source):
        model, is_on_disk = state.model.get(), state.model.stays_on_disk
        with left_as_given(who, model, _CURE, is_on_disk=is_on_disk, runs_first=True):
            replay = state.replay([state.data.first_batch(keys)], keys, ranks=ALONE)
            found = hold_against_model(replay)
            for tower in _with_tokens(replay.anatomy):
                replay.tokens(0, tower)
        state.model.refuse_changed(state.ranks)
        if found.own is None and not is_ours(type(adapter)):
            state.log.note(UNCOMPARED)
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


def _with_tokens(anatomy: Anatomy) -> set[str]:
    """Name the towers whose tokens are told from padding."""
    layers = [(block, layer) for block, layer in anatomy.layers() if layer.layout != "selected"]
    return {layer.reads or block.tower for block, layer in layers}


def _saves_otherwise(state: RunState) -> bool:
    """Say whether nothing is known of how a model is saved: it is in memory, and its adapter not of transformers' kind.

    Others were read from files by the same adapter, or by the library whose format it writes.
    """
    return state.prepared.source.model is not None and state.prepared.adapter_options.save_weights is None


def _try_to_save(state: RunState) -> None:
    """Save the dense model and find its weights again, for what it comes to later would be lost.

    It takes as long as saving the pruned one and as much of the disk, which is free again at once.
    """
    adapter, model = state.prepared.adapter, state.model.get()
    pruned = [layer.name for pool in state.prepared.pools for _, layer in pool.layers]
    # A process that is killed leaves it to the next one, which deletes what has such a name.
    with TemporaryDirectory(prefix=".saved-", suffix=".partial", dir=state.folder.path) as folder:
        inside = Path(folder)
        try_to_save(adapter, model, pruned, inside, partial(state.model.read, inside), state.folder.model)


def _data(state: RunState) -> CalibrationKeys | None:
    return state.recipe.calibration or state.recipe.score_calibration


def _forgotten(found: AgainstModel) -> Iterator[tuple[ForgottenKind, str]]:
    """Yield what is not covered, each with what the adapter covers in all."""
    covered, whole = found.coverage.shares()
    share = f"the layers of the adapter {found.adapter} hold {covered:,} of the {whole:,} weights in blocks that run"
    for one in found.coverage.forgotten():
        if one.kind in CHECKED:
            yield one.kind, f"{share}. {one.sentence}"
