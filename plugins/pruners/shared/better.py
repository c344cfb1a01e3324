"""Takes new weights only where they are better by the layer's own inputs, and says so where they are not."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.budget.select import is_finite, kept_only
from ecoflap.core.contracts.records import Mended, Pruned
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.shared.normalized_gram import NormalizedGram, normalized

_NOISE = 1e-10  # of the squared output: so much is nothing but float32's rounding, of which there is nothing to say


def better_of(weight: Float[Tensor, "out in"], before: Pruned, after: Pruned, gram: NormalizedGram, who: str) -> Pruned:
    """Give ``after`` where its squared output error on the calibration data is no larger than that of ``before``.

    Both are compared as they are stored, rounded to the weight's dtype. What was noted and mended ``before`` is always
    carried on, and both errors are told as shares of the output, where there is any.

    :param weight: The dense weight.
    :param who: Whose result ``after`` is, for the note.
    """
    better = _better(weight, before, after, gram, who)
    mended = before.mended
    if better.errors is not None and (output := gram.error(gram.scaled(weight))):
        old, new = better.errors
        mended = (*mended, Mended(who, old / output, new / output, new <= old))
    return better.pruned._replace(mended=mended)


class _Better(NamedTuple):
    """Holds the better one of two, and the squared output errors of both; None where one is not finite."""

    pruned: Pruned
    errors: tuple[float, float] | None


def _better(weight: Float[Tensor, "out in"], before: Pruned, after: Pruned, gram: NormalizedGram, who: str) -> _Better:
    dense = gram.scaled(weight)
    if not is_finite(after.weight):
        return _Better(_noted(before, f"{who} gave weights that do not fit {weight.dtype}, or are not finite"), None)
    old, new = (gram.error(gram.scaled(pruned.weight) - dense) for pruned in (before, after))
    if new <= old:
        return _Better(after._replace(notes=(*before.notes, *after.notes)), (old, new))
    output = gram.error(dense)
    if new - old <= _NOISE * output:  # as where nothing was pruned
        return _Better(before, (old, new))
    why = f"{who} would raise the output error from {old / output:.4g} to {new / output:.4g} of the output"
    return _Better(_noted(before, why), (old, new))


def solved_or_dense(
    weight: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    solved: Float[Tensor, "out in"],
    gram: Gram,
    who: str,
) -> Pruned:
    """Give what a pruner solved for on its mask where that is better, and the dense weights there where it is not.

    With fewer tokens than inputs it is taken too; the engine warns of those.

    :param who: The pruner's name, for notes.
    """
    before = Pruned(mask, kept_only(weight, mask))
    return _better(weight, before, Pruned(mask, kept_only(solved, mask)), normalized(gram), who).pruned


def _noted(before: Pruned, what: str) -> Pruned:
    return before._replace(notes=(*before.notes, f"{what}, so what was there before it is kept"))
