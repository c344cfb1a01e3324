"""Images that cannot be read: each is named, before anything is decoded that would fill the memory."""

from io import BytesIO

import pytest


def image(width: int, height: int, form: str, cut: float = 1.0) -> bytes:
    from PIL import Image

    written = BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(written, form)
    return written.getvalue()[: int(len(written.getvalue()) * cut)]


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG that says how large it is, and nothing of what it shows."""
    from struct import pack
    from zlib import crc32

    head = b"IHDR" + pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + head + pack(">I", crc32(head))


IMAGES = {
    "cut PNG": image(40, 30, "PNG", 0.7),
    "cut JPEG": image(40, 30, "JPEG", 0.7),
    "only a head": image(40, 30, "PNG")[:20],
    "a bomb": png_of(60_000, 60_000),
    "zero wide": png_of(0, 20),
    "huge": png_of(2**31 - 1, 2**31 - 1),
    "empty": b"",
    "text": b"no image",
    "another format": image(40, 30, "TIFF"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("broken", IMAGES)
def test_images_that_cannot_be_read_are_named(broken, bases, ecoflap_command):
    file = bases / "0.png"
    raw = file.read_bytes()
    file.write_bytes(IMAGES[broken])
    try:
        if broken == "another format":  # which is an image whatever its name says
            assert ecoflap_command("plan", bases / "clip.yaml")[0] == 0
        else:
            code, _, err = ecoflap_command("plan", bases / "clip.yaml")
            assert code == 2
            assert str(file) in err
    finally:
        file.write_bytes(raw)
