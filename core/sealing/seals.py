"""Hold sealed content to its seal, and say where it differs, in the same words for every kind of file."""

from ecoflap.core.errors import EcoflapError, RunError


def check_seal(
    found: str | bytes,
    expected: str | bytes,
    where: str,
    way_out: str,
    refusal: type[EcoflapError] = RunError,
    or_else: str = "",
) -> None:
    """Refuse a line whose seal is not that of what it seals.

    :param expected: The seal of what is there.
    :param where: The file, and the line that differs where one does.
    :param way_out: Ends what is said.
    :param or_else: What else may have happened, as it follows the rest.
    :raises EcoflapError: As ``refusal``.
    """
    if found != expected:
        raise refusal(f"{where}: this line is not what was written (SHA-256){or_else}. {way_out}")
