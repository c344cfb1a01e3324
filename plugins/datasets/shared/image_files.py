"""Image files are read as RGB pixels, whatever they were stored as, or refused with a reason."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError, one_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
"""Endings of the files that are taken for images in a folder without an index."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Those of Pillow's formats that are read. EPS is not among them, because Pillow starts another program for it."""
MOST_PIXELS = 178_956_970
"""Twice what Pillow warns of by itself. Its own limit is a setting of the process, which other libraries switch off."""
EXIF_ORIENTATION = 0x0112  # the number of the tag that says how the camera was held
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip


def read_image(source: Any) -> Any:
    """Read a PIL image in RGB, decoded to its last pixel and independent of its file.

    It is upright, as its EXIF data say. Of an animated image it is the first frame, transparent parts are laid over
    white, and of 16 bits a channel the upper 8 are taken.

    :param source: A file, its bytes, or a PIL image.
    :raises DataError: With the reason alone, such as ``image file is truncated``.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), _truncated_refused():
            warnings.simplefilter("ignore")  # they are about odd metadata, which nothing here looks at
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                return _rgb(source)
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
                return _rgb(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise DataError(f"more than {limit} pixels, the limit of PIL.Image.MAX_IMAGE_PIXELS") from None
    except Exception as error:  # a decoder that meets broken bytes raises nearly anything
        raise DataError(_reason(error, source)) from error


class LastImage:
    """Read images, and keep the one that was read last: rows about one image, as in VQA, mostly follow each other."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._image: Any = None

    def read(self, source: Any) -> Any:
        """Read an image as :func:`read_image` does, unless it is the file that was read last."""
        if not isinstance(source, Path) or source != self._file:
            self._image = read_image(source)
            self._file = source if isinstance(source, Path) else None
        return self._image


@contextmanager
def _truncated_refused() -> Iterator[None]:
    """Have Pillow refuse truncated files: some libraries set it, for the whole process, to fill them up in grey."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _formats() -> list[str]:
    """Give the formats that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _reason(error: Exception, source: Any) -> str:
    """Say why an image could not be read, in one line."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        if source == b"" or (isinstance(source, Path) and not source.stat().st_size):
            return "an empty file"
        moves = isinstance(source, Path) and (guess_type(source.name)[0] or "").startswith("video/")
        return f"{'a video, and ' if moves else ''}no image of a kind that is read: {', '.join(FORMATS)}"
    return one_line(error) or type(error).__name__


def _rgb(image: Any) -> Any:
    from PIL import Image

    width, height = image.size  # from the header: nothing is decoded before it is known how much it would be
    if width * height > MOST_PIXELS:
        raise DataError(f"{width}×{height} pixels, and {MOST_PIXELS:,} are read at most")
    image.load()
    upright = _upright(image)
    if upright.mode == "F":
        raise DataError("floating-point pixels, whose range is not known")
    if upright.mode.startswith("I"):
        upright = _upper_byte(upright)
    if upright.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in upright.info:
        pixels = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
    plain = upright.convert("RGB")
    plain.info = {}  # it would still hold the orientation, which has been seen to
    return plain


def _upright(image: Any) -> Any:
    """Turn an image as the camera was held. EXIF data that cannot be read turn nothing."""
    from PIL import Image

    try:
        turn = TURNS.get(image.getexif().get(EXIF_ORIENTATION))
    except Exception:  # broken metadata raise nearly anything, and make no image unreadable
        return image
    return image.transpose(Image.Transpose[turn]) if turn else image


def _upper_byte(image: Any) -> Any:
    """Make grey of 16 bits grey of 8. Pillow's own conversion would cut off at 255, which is nearly black."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise DataError("32-bit pixels, whose range is not known")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
