"""Says where a layer's calibration data are too few to solve by: weights would fit them alone."""

from ecoflap.core.forward.statistics import Gram


def few_tokens(gram: Gram) -> str | None:
    """Say how many tokens there are, where a layer has more inputs; None where it has not.

    With fewer tokens than inputs there are changes of the weights that no calibration output shows.
    """
    return f"{gram.tokens} tokens for {gram.in_features} inputs" if gram.tokens < gram.in_features else None
