"""The decoder of image files: modes and ranges, frames, formats, and limits."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import vaelib as vl
from vaelib.data.decode import UnreadableImage, check_levels, decode, with_channels
from vaelib.data.guard import MAX_PIXELS
from vaelib.errors import DataError

RAMP = np.arange(64).reshape(8, 8)


def saved(path, values, mode=None, **options):
    image = Image.fromarray(values) if isinstance(values, np.ndarray) else values
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def decode_picture(path, size, **options):
    return decode(str(path), path, size, **options)[0].image


def read(path, **options):
    return decode_picture(path, None, **options)[0].numpy()


# --- ranges


@pytest.mark.parametrize(
    ("values", "suffix", "value_range", "expected"),
    [
        (RAMP.astype(np.int32), "tif", (0, 63), RAMP * 255 / 63),
        (RAMP.astype(np.int32) * 1_000 + 400, "tif", (400, 63_400), RAMP * 255 / 63),
        (RAMP.astype(np.int32) * 60 - 1000, "tif", (-1000, 2780), RAMP * 255 / 63),  # CT, in Hounsfield units
        (RAMP.astype(np.uint16) * 65, "png", (0, 4095), RAMP * 255 / 63),  # 12 bits
        (RAMP.astype(np.uint16) * 65, "tif", (0, 4095), RAMP * 255 / 63),
        (RAMP.astype(np.uint16) * 1_040, "png", None, RAMP * 1_040 // 256),
        (RAMP.astype(np.uint16) * 1_040, "png", (0, 65_535), RAMP * 1_040 / 257),
        (RAMP.astype(np.float32) / 63, "tif", (0, 1), RAMP * 255 / 63),
        (RAMP.astype(np.float32) / 31.5 - 1, "tif", (-1, 1), RAMP * 255 / 63),
        ((RAMP % 2).astype(np.uint8), "png", (0, 1), RAMP % 2 * 255),
        (RAMP.astype(np.uint8), "png", (0, 255), RAMP),
        (RAMP.astype(np.uint8), "png", None, RAMP),
        ((RAMP % 2).astype(bool), "png", None, RAMP % 2 * 255),
        ((RAMP % 2).astype(bool), "tif", None, RAMP % 2 * 255),
    ],
)
def test_values_are_mapped_from_their_range(tmp_path, values, suffix, value_range, expected):
    path = saved(tmp_path / f"a.{suffix}", values)
    np.testing.assert_allclose(read(path, value_range=value_range), expected, atol=0.5)


def pnm(kind, largest, values):
    values = np.asarray(values)
    size = f"{values.shape[1]} {values.shape[0]}"
    return f"{kind} {size} {largest}\n".encode() + values.astype(">u2" if largest > 255 else np.uint8).tobytes()


def test_a_pgm_states_its_range(tmp_path):
    path = tmp_path / "a.pgm"
    for largest, value in ((4095, 1000), (65_535, 30_000), (15, 5), (1, 1), (255, 3)):
        path.write_bytes(pnm("P5", largest, [[value, 0]]))
        check_levels("set", decode("a", path))
        assert read(path).tolist() == [[pytest.approx(value * 255 / largest, abs=1), 0]]
        assert read(path, value_range=(0, value)).tolist() == [[255, 0]]


def png16(path, color_type, values):
    """A PNG of 16 bits a channel, which PIL reads but does not write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def test_16_bit_colours(tmp_path):
    bright = png16(tmp_path / "bright.png", 2, np.full((2, 2, 3), 40_000))
    dark = png16(tmp_path / "dark.png", 2, np.full((2, 2, 3), 4_000))
    assert np.unique(read(bright)).tolist() == np.unique(read(bright, value_range=(0, 65_535))).tolist() == [156]
    check_levels("set", [*decode("a", bright), *decode("b", dark)])


def test_other_modes(tmp_path):
    grey = Image.fromarray((RAMP * 4).astype(np.uint8))
    coloured = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.FLIP_TOP_BOTTOM), grey])
    assert decode_picture(saved(tmp_path / "p.png", coloured.quantize(64)), None).shape == (3, 8, 8)
    cmyk = decode_picture(saved(tmp_path / "c.tif", coloured, "CMYK"), None)
    np.testing.assert_allclose(cmyk.permute(1, 2, 0), np.asarray(coloured), atol=1)
    clear = Image.merge("LA", [grey, Image.new("L", (8, 8), 0)])
    for image in (clear, Image.new("RGBA", (8, 8), (255, 0, 0, 0))):
        assert decode_picture(saved(tmp_path / "clear.png", image), None).unique().tolist() == [255]


def tiff(path, bands, extra):
    """A TIFF of 8-bit bands, the first one or three of which are grey or colours."""
    pixels = np.full((4, 4, bands), 200, np.uint8).tobytes()
    grey = bands == 2
    short = struct.Struct("<HHIHH").pack
    tags = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1 if grey else 2), (273, 8), (277, bands), (278, 4)]
    many = struct.pack(f"<{bands}H", *[8] * bands)
    at = 8 + len(pixels)
    entries = []
    for tag, value in tags:
        if tag == 258 and bands > 2:
            entries.append(struct.pack("<HHII", 258, 3, bands, at))
        elif tag == 258:
            entries.append(struct.pack("<HHIHH", 258, 3, 2, 8, 8))
        else:
            entries.append(short(tag, 3, 1, value, 0))
    entries += [struct.pack("<HHII", 279, 4, 1, len(pixels)), short(338, 3, 1, extra, 0)]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", at + len(many)) + pixels + many + directory)
    return path


def test_bands_of_a_tiff_are_not_dropped(tmp_path):
    saved(tmp_path / "a.png", np.full((4, 4), 200, np.uint8))
    for bands in (2, 4):
        assert decode_picture(tiff(tmp_path / "alpha.tif", bands, extra=2), None).shape == (3, 4, 4)
        tiff(tmp_path / "bands.tif", bands, extra=0)
        with pytest.raises(UnreadableImage, match=f"it has {bands} bands, of which {bands - 1} would be read"):
            decode_picture(tmp_path / "bands.tif", None)
        with pytest.warns(UserWarning, match=f"1 file was skipped .*bands.tif: it has {bands} bands"):
            assert len(vl.data.load(tmp_path, "all")) == 2


@pytest.mark.parametrize(
    ("dtype", "tags", "match"),
    [
        (np.uint16, {262: 0}, "its white is 0 in more than 8 bits; save it with black as 0"),
        (np.uint8, {339: 2}, r"its 8-bit values are signed; save an array \(N, H, W\) instead"),
    ],
)
def test_a_tiff_that_would_be_inverted_or_lose_its_sign_is_skipped(tmp_path, dtype, tags, match):
    values = np.full((4, 4), 200, dtype) * (257 if dtype == np.uint16 else 1)
    Image.fromarray(values).save(tmp_path / "1.tif")
    Image.fromarray(values).save(tmp_path / "2.tif", tiffinfo=tags)
    with pytest.raises(UnreadableImage, match=match):
        decode_picture(tmp_path / "2.tif", None)
    for read in (vl.data.load, vl.data.stream):
        with pytest.warns(UserWarning, match=f"1 unreadable .2.tif: {match}"):
            assert read(tmp_path, "all")[0].unique().numel() == 1


def test_a_range_is_decided_over_the_whole_set(tmp_path):
    dark = saved(tmp_path / "0.png", np.full((2, 2), 900, np.uint16))
    with pytest.raises(DataError, match=r"no value above 900 of 65535. Give value_range=\(0, 1023\) if .* 10 bits"):
        vl.data.load(tmp_path, "all")
    with pytest.raises(DataError, match="`value_range` must be given for `paths`"):
        vl.data.read_images([dark])
    images = vl.data.read_images([dark], value_range=[0, 900])
    assert images.unique().tolist() == [255]
    assert torch.equal(vl.data.load(tmp_path, "all", value_range=(0, 900)).images, images)
    assert torch.equal(vl.data.stream(tmp_path, "all", value_range=(0, 900), workers=0)[0], images[0] / 255)
    saved(tmp_path / "1.png", np.full((2, 2), 60_000, np.uint16))
    assert vl.data.load(tmp_path, "all").images[:, 0, 0, 0].tolist() == [3, 234]


def test_a_few_deep_images_among_many_are_checked(tmp_path):
    for i in range(300):
        saved(tmp_path / f"{i:03d}.png", np.full((2, 2), 128, np.uint8))
    saved(tmp_path / "150.png", np.full((2, 2), 900, np.uint16))
    for read in (vl.data.load, vl.data.stream):
        with pytest.raises(DataError, match="16-bit images have no value above 900 of 65535"):
            read(tmp_path, "all")


def test_masks_need_a_range(tmp_path):
    for name, values in (("0.png", RAMP * 0), ("1.png", RAMP % 2)):
        saved(tmp_path / name, values.astype(np.uint8))
    with pytest.raises(DataError, match=r"no value above 1 of 255. Give value_range=\(0, 1\) if that is white"):
        vl.data.load(tmp_path, "all")
    (tmp_path / "1.png").unlink()
    assert vl.data.load(tmp_path, "all").images.max() == 0  # black is black in any range
    for mode in ("L", "RGB"):
        (tmp_path / mode).mkdir()
        for i in range(150):  # more than are looked at, if these leave no doubt
            saved(tmp_path / mode / f"{i:03d}.png", np.full((2, 2), i == 50, np.uint8), mode)
        for read in (vl.data.load, vl.data.stream):
            with pytest.raises(DataError, match="no value above 1 of 255"):
                read(tmp_path / mode, "all")
    images = vl.data.load(tmp_path / "RGB", "all", value_range=(0, 1)).images[:, :, 0, 0]
    assert images.sum(0).tolist() == [255] * 3


def test_a_stream_looks_at_some_images_for_a_range_that_holds_them(tmp_path):
    saved(tmp_path / "0.png", np.full((2, 2), 200, np.uint8))
    with pytest.raises(DataError, match=r"`value_range` must hold all values of .*0.png, got \(0, 100\)"):
        vl.data.stream(tmp_path, "all", value_range=(0, 100))


# --- frames


def animation(path, count=3, **options):
    frames = [Image.fromarray(np.full((4, 6), 60 * i + 60, np.uint8)) for i in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_frames_and_pages_are_asked_for(tmp_path, name):
    path = animation(tmp_path / name)
    with pytest.raises(DataError, match=f"`frames` must be 'first' or 'all' for .*{name}, which holds 3 frames"):
        decode(name, path)
    levels = [decoded.image.float().mean().item() for decoded in decode(name, path, frames="all")]
    assert levels == pytest.approx([60, 120, 180], abs=2)
    assert decode_picture(path, None, frames="first").float().mean().item() == pytest.approx(60, abs=2)
    for number in (2, 0, 1):  # as a stream needs them: one alone
        (alone,) = decode(name, path, frames="all", only=number)
        assert alone.image.float().mean().item() == pytest.approx(60 * number + 60, abs=2)


def test_many_frames_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    path = animation(tmp_path / "a.gif")
    monkeypatch.setattr("vaelib.data.guard._free_memory", lambda: 80)
    with pytest.raises(DataError, match="All frames of .*a.gif would take .* of free memory; use the first alone"):
        decode(str(path), path, frames="all")
    assert len(decode(str(path), path, frames="first")) == 1


def test_a_phones_jpeg_with_a_preview_is_one_image(tmp_path):
    path = animation(tmp_path / "a.mpo")
    with Image.open(path) as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 3)
    assert len(decode("a", path, frames="all")) == 1
    assert decode_picture(path, None).float().mean().item() == pytest.approx(60, abs=2)


# --- formats and limits


def test_postscript_never_starts_ghostscript(tmp_path, monkeypatch):
    started = tmp_path / "started"
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {started}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "image.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImage, match="not an image of a known format"):
        decode_picture(path, None)
    assert not started.exists()
    with pytest.raises(OSError, match="Ghostscript|cannot|truncated"), Image.open(path) as opened:
        opened.load()  # what PIL alone would do with the file
    assert started.exists()


KINDS = {
    "AVIF": "avif",
    "BMP": "bmp",
    "JPEG": "jpg JPG jpe jfif",
    "JPEG2000": "jp2 j2k",
    "PNG": "apng",
    "PPM": "ppm pnm pbm",
    "WEBP": "webp",
}


@pytest.mark.parametrize(
    ("suffix", "kind"), [(suffix, kind) for kind, suffixes in KINDS.items() for suffix in suffixes.split()]
)
def test_suffixes(tmp_path, suffix, kind):
    try:
        Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / f"a.{suffix}", kind)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow has no {kind}")
    images = vl.data.load(tmp_path, "all").batch(slice(None))
    np.testing.assert_allclose(255 * images.mean((0, 2, 3)), [200, 100, 50], atol=6)
    assert torch.equal(vl.data.stream(tmp_path, "all", workers=0)[0], images[0])


def test_images_above_the_limit_are_not_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", np.zeros((8, 9), np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 13_000, 13_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=f"at most {MAX_PIXELS:,} pixels, this has 13000 x 13000"):
        decode_picture(path, None)
    assert MAX_PIXELS > 9248 * 6944


def test_grey_from_colour():
    assert with_channels(torch.full((3, 2, 2), 255, dtype=torch.uint8), 1).unique().tolist() == [255]


# --- what is refused


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("refused")
    for name in ("empty", "animated", "pipe"):
        (root / name).mkdir()
    saved(root / "ct.tif", RAMP.astype(np.int32) * 60 - 1000)
    saved(root / "nan.tif", np.full((2, 2), np.nan, np.float32))
    png16(root / "dark16.png", 2, np.full((2, 2, 3), 4_000))
    animation(root / "animated" / "a.gif")
    os.mkfifo(root / "pipe" / "a.png")
    return root


REFUSED = [
    (lambda at: read(at / "ct.tif"), "`value_range` must be given for .*: 32-bit or signed images have no agreed"),
    (lambda at: read(at / "ct.tif", value_range=(0, 9)), r"hold all values of .*, got \(0, 9\) for .* \[-1000, 2780\]"),
    (lambda at: read(at / "nan.tif"), "`value_range` must be given for .*: floating-point images"),
    (lambda at: read(at / "nan.tif", value_range=(0, 1)), r"must hold all values of .* in \[nan, nan\]"),
    (lambda at: read(at / "dark16.png", value_range=(0, 4095)), r"must be None or \(0, 65535\) for .*16-bit colours"),
    (lambda at: check_levels("set", decode("b", at / "dark16.png")), "16-bit images have no value above 3840 of 65535"),
    (lambda at: vl.data.load(at / "animated"), r"`frames` must be 'first' or 'all' for .*a\.gif"),
    (lambda at: vl.data.stream(at / "animated"), r"`frames` must be 'first' or 'all' for .*a\.gif"),
    (lambda at: vl.data.read_images([at / "animated" / "a.gif"]), "`frames` must be 'first' or 'all'"),
    (lambda at: read(at / "pipe" / "a.png"), "is not a regular file, but a pipe, socket or device"),
    (lambda at: read(at / "empty"), "is not a regular file, but a folder"),
    (lambda at: vl.data.load(at / "pipe"), "There is no image in .*1 pipe, socket or device"),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_what_is_refused(files, call, match):
    with pytest.raises(DataError, match=match):
        call(files)
