"""Every way an image may be stored, as the RGB pixels a model sees; and bytes that are no image."""

import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.shared.image_files import TURNS, read_image

NOISE = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)


def stored(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: Any) -> Any:
    image = read_image(source)
    assert (image.mode, image.info) == ("RGB", {})
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_as_it_is(kind: str):
    assert (pixels(stored(Image.fromarray(NOISE[..., :3]), kind)) == NOISE[..., :3]).all()


def test_a_file_may_go_afterwards(tmp_path: Path):
    file = tmp_path / "a.png"
    Image.fromarray(NOISE[..., :3]).save(file)
    image = read_image(file)
    file.unlink()
    assert (np.asarray(image) == NOISE[..., :3]).all()


def test_an_image_in_memory_is_copied():
    given_image = Image.fromarray(NOISE[..., :3])
    image = read_image(given_image)
    image.putpixel((0, 0), (1, 2, 3))
    assert (np.asarray(given_image) == NOISE[..., :3]).all()


def test_grey_and_two_colours():
    grey = NOISE[..., 0]
    assert (pixels(stored(Image.fromarray(grey))) == grey[..., None]).all()
    assert (pixels(stored(Image.fromarray(grey > 99))) == 255 * (grey > 99)[..., None]).all()


def test_a_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(stored(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_transparent_parts_are_white():
    over_white = NOISE[..., :3] * (NOISE[..., 3:] / 255) + 255 - NOISE[..., 3:].astype(float)
    assert np.abs(pixels(stored(Image.fromarray(NOISE))) - over_white).max() <= 1
    grey = NOISE[..., [0, 3]]
    grey_over_white = grey[..., :1] * (grey[..., 1:] / 255) + 255 - grey[..., 1:].astype(float)
    assert (
        np.abs(
            pixels(stored(Image.merge("LA", [Image.fromarray(np.ascontiguousarray(grey[..., i])) for i in (0, 1)])))
            - grey_over_white
        ).max()
        <= 1
    )


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_white(kind: str):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(stored(image, kind, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_a_palette_with_an_opacity_for_each_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(stored(image, transparency=b"\xff\x00")).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_upper_8(kind: str):
    grey = np.array([[0, 255, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
    found = pixels(stored(Image.fromarray(grey), kind))
    assert found[0, :, 0].tolist() == [0, 0, 1, 0x80, 0xFF]
    assert (found == found[..., :1]).all()


def test_a_grey_map_of_16_bits():
    found = pixels(b"P5 2 1 65535\n" + struct.pack(">HH", 0x1234, 0xFFFF))
    assert found[0, :, 0].tolist() == [0x12, 0xFF]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several(kind: str):
    frames = [Image.new("RGB", (4, 4), (shade, shade, shade)) for shade in (0, 120, 255)]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert not pixels(stored(frames[0], kind, save_all=True, append_images=frames[1:], **options)).any()


def test_cmyk():
    found = pixels(stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert found[4, 4, 0] > 200
    assert found[4, 4, 1:].max() < 60


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_the_camera_was_held(orientation: int, kind: str):
    """What EXIF says is which edge of the stored image is up and which is left: here by indexing."""
    seen = NOISE[..., :3]
    as_stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: seen.transpose(1, 0, 2)[::-1],
        7: seen[::-1, ::-1].transpose(1, 0, 2),
        8: seen.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    source = stored(Image.fromarray(np.ascontiguousarray(as_stored)), kind, exif=exif, **options)
    assert (pixels(source) == seen).all()
    assert set(TURNS) == set(range(2, 9))


@settings(max_examples=50)
@given(exif=st.binary(max_size=60))
def test_broken_exif_data_do_not_make_an_image_unreadable(exif: bytes):
    source = stored(Image.new("RGB", (8, 8), "white"), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + exif)
    assert pixels(source).min() > 250


@pytest.mark.parametrize(("source", "reason"), [(b"", "an empty file"), (b"<html>404</html>", "no image of a kind")])
def test_what_is_no_image(source: bytes, reason: str, tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(source)
    for same in (source, tmp_path / "a.jpg"):
        with pytest.raises(DataError, match=f"^{reason}"):
            read_image(same)


def test_a_video_is_told_from_other_files(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(DataError, match=r"^a video, and no image of a kind that is read: JPEG"):
        read_image(tmp_path / "a.mp4")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_truncated_files(kind: str):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    source = stored(Image.fromarray(noise), kind)
    with pytest.raises(DataError):
        read_image(source[: len(source) // 2])


@settings(max_examples=200)
@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]))
def test_broken_bytes_are_an_image_or_a_reason(data: st.DataObject, kind: str):
    source = bytearray(stored(Image.fromarray(NOISE[..., :3]), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DataError):
        assert read_image(bytes(source)).mode == "RGB"


@pytest.mark.parametrize("limit", [11, 23])
def test_too_many_pixels(limit: int, monkeypatch: pytest.MonkeyPatch):
    """Beyond the limit Pillow warns, and beyond twice the limit it raises."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=rf"^more than {limit} pixels, the limit of PIL\.Image\.MAX_IMAGE_PIXELS$"):
        read_image(stored(Image.new("RGB", (6, 4))))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.5]], dtype=np.float32), "floating-point pixels, whose range is not known"),
        (np.array([[70000]], dtype=np.int32), "32-bit pixels, whose range is not known"),
        (np.array([[-1]], dtype=np.int32), "32-bit pixels, whose range is not known"),
    ],
)
def test_pixels_of_an_unknown_range(values: Any, reason: str):
    with pytest.raises(DataError, match=reason):
        read_image(stored(Image.fromarray(values), "TIFF"))


def test_formats_that_run_other_programs_are_not_read(tmp_path: Path):
    source = stored(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(DataError, match="no image of a kind that is read"):
        read_image(source)


def test_a_truncated_file_is_refused_whatever_other_libraries_set(tmp_path, monkeypatch):
    from PIL import Image, ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    file = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 64).save(file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="truncated"):
        read_image(file)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_pixels_are_limited_where_another_library_has_taken_pillows_limit_away(monkeypatch: pytest.MonkeyPatch):
    """By the header: no pixel of it is decoded, of which there are too few."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    claims = bytearray(stored(Image.new("L", (6, 4))))
    claims[16:24] = (20_000).to_bytes(4, "big") * 2  # width and height of a PNG, and then the checksum of both
    claims[29:33] = zlib.crc32(claims[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"^20000×20000 pixels, and 178,956,970 are read at most$"):
        read_image(bytes(claims))
