"""Says where layers saw fewer tokens than they have inputs, so that what is solved by their Gram matrices may mislead.

With fewer tokens than inputs there are changes of the weights that no calibration output shows.
"""

from collections.abc import Mapping

from ecoflap.core.contracts.records import Statistics
from ecoflap.core.statistics.gram import Gram


def few_tokens(gram: Gram) -> str | None:
    """Say how many tokens a layer saw, where it has more inputs; None where it has not."""
    return f"{gram.tokens} tokens for {gram.in_features} inputs" if gram.tokens < gram.in_features else None


def few_among(seen: Mapping[str, Statistics]) -> dict[str, str]:
    """Give what :func:`few_tokens` says of each layer whose Gram matrix is of few tokens, by the layer's name."""
    grams = {name: one.get(Gram) for name, one in seen.items()}
    return {name: said for name, gram in grams.items() if gram is not None and (said := few_tokens(gram))}


def warning_of_few(few: Mapping[str, str]) -> str:
    """Make one sentence of the layers that saw few tokens.

    :param few: What :func:`few_tokens` says, by the layer's name; of one layer or more.
    """
    name, said = next(iter(few.items()))
    others = f", and those of {len(few) - 1} other layers" if len(few) > 1 else ""
    return (
        f"{name}: {said}{others} are few: what is solved by them may fit the calibration data alone. Calibrate on more "
        f"samples, or on longer ones"
    )
