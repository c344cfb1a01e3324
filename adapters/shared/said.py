"""What a sample says, where a model learns to say something."""

from ecoflap.core.contracts.records import Sample


def first_said(sample: Sample) -> str | None:
    """Give the first answer that is not blank, or else the text; None where there is neither."""
    return next((answer for answer in sample.answers if answer.strip()), sample.text)
