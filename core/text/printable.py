"""Take from texts of others what would steer the terminal that they are printed on."""

import unicodedata


def printable(text: str) -> str:
    """Write control characters and turns of direction as escapes; line breaks and tabs stay.

    A name in somebody else's report could otherwise set the window's title, hide rows, or look like another.
    """
    return "".join(one if one in "\n\t" or not _steers(one) else one.encode("unicode_escape").decode() for one in text)


def _steers(character: str) -> bool:
    # Cc: controls, among them ESC; Cf: such as the marks that turn the direction of writing
    # and Cs: halves of characters, which no file in UTF-8 can hold; Zl and Zp: breaks of lines and of paragraphs
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
