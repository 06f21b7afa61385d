"""Pictures of any mode and orientation are read as seen, in training and in prediction."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from small_coco import bomb, image, turned_by_exif, write_data

import predict_mrrcnn
from training.data import CocoInstances, make_transforms
from training.pictures import check_headers, read_header, read_picture, to_rgb

RAMP = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)  # [H, W]
COLORS = np.stack([RAMP, RAMP[::-1], RAMP.T.reshape(10, 12)], axis=2)
TURNED = range(2, 9)  # EXIF orientations


def read(tmp_path, picture, name="picture.png", **options):
    picture.save(tmp_path / name, **options)
    result = read_picture(tmp_path / name)
    assert result.mode == "RGB"
    return np.asarray(result).astype(int)


def grey(values):
    return np.repeat(values[:, :, None].astype(int), 3, axis=2)


def test_rgba_drops_its_transparency(tmp_path):
    pixels = np.concatenate([COLORS, RAMP[:, :, None]], axis=2)
    assert (read(tmp_path, Image.fromarray(pixels)) == COLORS).all()


def test_grey_with_transparency_drops_it(tmp_path):
    pixels = np.stack([RAMP, RAMP[::-1]], axis=2)
    picture = Image.fromarray(pixels)
    assert picture.mode == "LA"
    assert (read(tmp_path, picture) == grey(RAMP)).all()


@pytest.mark.parametrize("options", [{}, {"transparency": 3}])
def test_a_palette_gives_its_colours(tmp_path, options):
    few = COLORS // 100 * 100
    picture = Image.fromarray(few).quantize(64)
    expected = np.asarray(picture.convert("RGB"))
    assert np.abs(expected.astype(int) - few).max() < 5
    assert (read(tmp_path, picture, **options) == expected).all()


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_16_bits_of_grey_are_scaled_and_not_clipped(tmp_path, name):
    picture = Image.fromarray(RAMP.astype(np.uint16) * 257 + 100)
    assert picture.mode.startswith("I;16")
    assert (read(tmp_path, picture, name) == grey(RAMP)).all()


def test_16_bits_of_a_portable_grey_map_are_scaled(tmp_path):
    """Pillow reads these in mode I."""
    path = tmp_path / "grey.pgm"
    path.write_bytes(b"P5 12 10 65535\n" + (RAMP.astype(">u2") * 257).tobytes())
    assert (np.asarray(read_picture(path)) == grey(RAMP)).all()


def test_16_bits_of_each_colour_keep_the_higher_eight(tmp_path):
    """Pillow writes no such file."""

    def chunk(kind, content):
        length, checksum = len(content), zlib.crc32(kind + content)
        return length.to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")

    rows = (COLORS.astype(np.uint16) * 257 + 9).astype(">u2").reshape(10, -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    header = chunk(b"IHDR", bytes([0, 0, 0, 12, 0, 0, 0, 10, 16, 2, 0, 0, 0]))
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )
    assert (np.asarray(read_picture(path)) == COLORS).all()


def test_one_bit_is_black_and_white(tmp_path):
    bits = RAMP > 100
    assert (read(tmp_path, Image.fromarray(bits)) == grey(bits * 255)).all()


@pytest.mark.parametrize("name", ["picture.tif", "picture.jpg"])
def test_cmyk_gives_the_colours_that_are_printed(tmp_path, name):
    smooth = np.full((16, 16, 3), (200, 120, 40), np.uint8)
    pixels = read(tmp_path, Image.fromarray(smooth).convert("CMYK"), name)
    assert np.abs(pixels - smooth).max() < 8


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "HSV", "YCbCr"])
def test_other_modes_are_converted(mode):
    through = {"RGBa": "RGBA", "La": "LA", "PA": "P"}.get(mode, mode)
    picture = Image.fromarray(np.full((4, 4, 3), 102, np.uint8)).convert(through).convert(mode)
    assert np.abs(np.asarray(to_rgb(picture)).astype(int) - 102).max() < 4


@pytest.mark.parametrize(
    "values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32)]
)
def test_grey_values_without_a_known_range_are_refused_by_name(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "picture.tif")
    with pytest.raises(ValueError, match=r"picture\.tif must be .*whole numbers from 0 to 65535"):
        read_picture(tmp_path / "picture.tif")


def turned(pixels, orientation):
    """The stored pixels of a picture that is seen as ``pixels``."""
    picture = Image.fromarray(pixels)
    picture.getexif()[274] = {6: 8, 8: 6}.get(orientation, orientation)
    return ImageOps.exif_transpose(picture)


def save(picture, path, orientation, **options):
    exif = Image.Exif()
    exif[274] = orientation
    picture.save(path, exif=exif, **options)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_a_picture_is_upright_in_training_and_prediction(tmp_path, name, orientation):
    path = tmp_path / name
    options = {"lossless": True} if name.endswith("webp") else {}
    save(turned(COLORS, orientation), path, orientation, **options)
    assert read_header(path).seen == (12, 10)
    assert (np.asarray(read_picture(path, (12, 10))) == COLORS).all()
    assert (np.asarray(predict_mrrcnn.read_picture(path)) == COLORS).all()


def test_an_orientation_behind_the_pixels_of_a_png_is_found(tmp_path):
    path = tmp_path / "a.png"
    save(turned(COLORS, 6), path, 6)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    chunk, rest = content[start:end], content[:start] + content[end:]
    tail = rest.index(b"IEND") - 4
    path.write_bytes(rest[:tail] + chunk + rest[tail:])
    assert (np.asarray(read_picture(path, (12, 10))) == COLORS).all()
    record = {"id": 1, "file_name": path.name, "width": 12, "height": 10}
    check_headers(tmp_path / "annotations.json", tmp_path, [record], workers=1)


def test_both_parts_of_a_data_set_are_upright(tmp_path):
    """The first picture is 20 x 10 pixels as seen."""
    seen = np.random.default_rng(1).integers(0, 256, (10, 20, 3), np.uint8)
    for split in ("train", "val"):
        write_data(tmp_path, lambda coco, folder: save(turned(seen, 6), folder / "a.png", 6), split)
        picture, target = CocoInstances(tmp_path, split, make_transforms(False))[0]
        assert ((picture * 255).round().permute(1, 2, 0).numpy() == seen).all()
        assert target["boxes"].tolist() == [[2, 2, 8, 8]]


def test_the_size_before_exif_turns_a_picture_is_refused_when_it_is_loaded(tmp_path):
    """Label Studio and labelme2coco wrote it with boxes as seen, other programs with boxes as
    stored."""
    write_data(tmp_path, turned_by_exif)
    data = CocoInstances(tmp_path, "train", header_workers=0)
    with pytest.raises(ValueError, match=r"a\.png is 10 x 20 pixels .* 20 x 10, its size before"):
        data[0]


def test_a_picture_of_another_size_is_refused_when_it_is_loaded(tmp_path):
    write_data(tmp_path, image(width=21))
    data = CocoInstances(tmp_path, "train", header_workers=0)
    with pytest.raises(ValueError, match=r"a\.png is 20 x 10 pixels .* gives 21 x 10$"):
        data[0]


def test_a_truncated_picture_is_named_when_it_is_loaded(tmp_path):
    """Its header is whole."""

    def truncate(coco, folder):
        pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "a.jpg")
        content = (folder / "a.jpg").read_bytes()
        (folder / "a.jpg").write_bytes(content[:-200])
        coco["images"][0]["file_name"] = "a.jpg"

    write_data(tmp_path, truncate)
    data = CocoInstances(tmp_path, "train", header_workers=2)
    with pytest.raises(ValueError, match=r"a\.jpg must be a picture .*: .*truncated"):
        data[0]
    assert data[1][0].shape == (3, 16, 12)


def test_a_picture_that_vanishes_is_named(tmp_path):
    write_data(tmp_path)
    data = CocoInstances(tmp_path, "train")
    (tmp_path / "train2017/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png does not exist"):
        data[1]


def test_a_decompression_bomb_is_named(tmp_path):
    path = tmp_path / "bomb.png"
    Image.fromarray(COLORS).save(path)
    bomb(path)
    for read_file in (read_header, read_picture):
        with pytest.raises(ValueError, match=r"bomb\.png must be .*decompression bomb"):
            read_file(path)


def encoded(name):
    content = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(COLORS).save(content, name, **({} if name == "GIF" else {"exif": exif}))
    return content.getvalue()


FILES = {name: encoded(name) for name in ("PNG", "JPEG", "TIFF", "WEBP", "GIF")}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=5000)
@given(st.data())
def test_a_broken_picture_is_a_value_error_that_names_it(tmp_path_factory, data):
    content = bytearray(FILES[data.draw(st.sampled_from(sorted(FILES)))])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "broken"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for read_file in (read_header, read_picture):
        try:
            read_file(path)
        except ValueError as error:
            assert str(error).startswith(str(path))
