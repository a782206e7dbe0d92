"""Pictures of strangers: what is taken, what is refused, that nothing is written; edits that make no sense."""

import builtins
import io
import json
import os
import struct
import tempfile
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, features
from starlette.testclient import TestClient
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.page import BadQuery, Query
from thresher.analysis.explorer.pages import upload
from thresher.analysis.explorer.several import Explorer
from thresher.harvest.decode import decode_image


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    depth = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], depth), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if depth == 1 else pixels, mode=mode)


def saved(image: Image.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def taken(data: bytes) -> Image.Image:
    upload.require_picture(data)
    return upload.decoded(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])
def test_a_picture_of_each_format_is_decoded_as_harvest_does(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = saved(picture(), kind)
    assert np.array_equal(taken(data), decode_image(data))


def test_odd_pictures_are_taken_as_harvest_takes_them():
    palette = picture().quantize(8)
    for data in (
        saved(picture("CMYK"), "JPEG"),
        saved(palette, "PNG", transparency=3),
        saved(picture("RGBA"), "PNG"),
        saved(picture("LA"), "PNG"),
        saved(picture("L"), "PNG"),
        saved(picture(size=(1, 1)), "PNG"),
        saved(picture().convert("1"), "PNG"),
    ):
        found = taken(data)
        assert found.mode == "RGB"
        assert np.array_equal(found, decode_image(data))


def test_exif_rotation_is_left_alone_as_in_a_harvest():
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    assert taken(saved(picture(), "JPEG", exif=exif)).size == (40, 30)


def test_of_an_animation_the_first_frame_is_taken():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(red, kind, save_all=True, append_images=[blue], **({"lossless": True} if kind == "WEBP" else {}))
        assert taken(data).getpixel((4, 4)) == (255, 0, 0)


def huge_png(width: int, height: int) -> bytes:
    """A PNG that says it is large, with next to no data behind."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


REFUSED = {
    "nothing": (b"", "body of the request is empty"),
    "text": (b"not a picture", "no picture in one of the formats"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no picture in one of the formats"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture in one of the formats"),
    "tiff": (saved(picture(), "TIFF"), "no picture in one of the formats"),
    "icon": (saved(picture(size=(16, 16)), "ICO"), "no picture in one of the formats"),
    "ppm": (saved(picture(), "PPM"), "no picture in one of the formats"),
    "truncated": (saved(picture(), "PNG")[:-200], "cannot be read"),
    "truncated jpeg": (saved(picture(), "JPEG")[:400], "cannot be read"),
    "header alone": (saved(picture(), "PNG")[:20], "no picture in one of the formats|cannot be read"),
    "bomb": (huge_png(8001, 8000), "8,001 × 8,000 pixels: at most 64,000,000"),
    "larger bomb": (huge_png(60000, 60000), "too many pixels"),
    "ribbon": (saved(picture(size=(402, 2)), "PNG"), "one side is more than 200 times the other"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_picture_to_take_is_refused_with_the_reason(what):
    data, reason = REFUSED[what]
    with pytest.raises(BadQuery, match=reason):
        taken(data)


def test_damaged_pictures_are_refused_and_never_fail():
    draw = np.random.default_rng(1)
    whole = [saved(picture(), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    for _ in range(300):
        data = bytearray(whole[draw.integers(len(whole))])
        for place in draw.integers(0, len(data), 1 + draw.integers(8)):
            data[place] = draw.integers(256)
        with suppress(BadQuery):
            taken(bytes(data))


def test_nothing_of_a_picture_is_written(monkeypatch):
    opened = builtins.open

    def reading(file, mode="r", *more, **named):
        assert not set(mode) & set("wax+"), f"{file} is opened to be written"
        return opened(file, mode, *more, **named)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file is made")

    monkeypatch.setattr(builtins, "open", reading)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        taken(saved(picture(), kind))


def test_without_the_tower_the_page_stands_and_a_picture_is_told_why(client):
    assert client.get("/upload").status_code == 200
    found = client.get("/upload/tower.json").json()
    assert not found["is_ready"]
    answer = client.post("/upload/picture.json", content=saved(picture(), "PNG"))
    assert answer.status_code == 503
    assert answer.json()["error"] == found["reason"]
    assert "tiny" in found["reason"]
    assert "\n" not in found["reason"]


def test_what_is_no_picture_is_refused_before_the_tower_is_asked_for(client):
    answer = client.post("/upload/picture.json", content=b"rubbish")
    assert answer.status_code == 400


def test_a_picture_that_is_too_long_or_from_elsewhere_is_not_read(made):
    with TestClient(make_app(Explorer([made.path])), base_url="http://127.0.0.1") as client:
        assert client.post("/upload/picture.json", content=b"x" * ((10 << 20) + 1)).status_code == 413
        for headers in ({"origin": "http://elsewhere"}, {"sec-fetch-site": "cross-site"}):
            assert client.post("/upload/picture.json", content=b"x", headers=headers).status_code == 403
        assert client.get("/upload/picture.json").status_code == 404


TOKEN = {"token": "t", "factors": {}, "keep_error": True}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b"[" * 60_000, "JSON object"),
        (b"\xff{}", "JSON object"),
        (b"{}", "a token, a string"),
        (json.dumps({**TOKEN, "token": 3}).encode(), "a token, a string"),
        (json.dumps({**TOKEN, "keep_error": 1}).encode(), "a token, a string"),
        (json.dumps({**TOKEN, "factors": [1]}).encode(), "factors, an object"),
        (json.dumps({**TOKEN, "factors": {"x": 1}}).encode(), "features 0 to 95, not 'x'"),
        (json.dumps({**TOKEN, "factors": {"96": 1}}).encode(), "features 0 to 95, not '96'"),
        (json.dumps({**TOKEN, "factors": {"²": 1}}).encode(), "features 0 to 95"),
        (json.dumps({**TOKEN, "factors": {"-1": 1}}).encode(), "features 0 to 95"),
        (json.dumps({**TOKEN, "factors": {"1": 3.01}}).encode(), "feature 1 is 0 to 3, not 3.01"),
        (json.dumps({**TOKEN, "factors": {"1": -0.1}}).encode(), "feature 1 is 0 to 3"),
        (json.dumps({**TOKEN, "factors": {"1": True}}).encode(), "feature 1 is 0 to 3"),
        (json.dumps({**TOKEN, "factors": {"1": "2"}}).encode(), "feature 1 is 0 to 3"),
        (b'{"token": "t", "factors": {"1": NaN}, "keep_error": true}', "feature 1 is 0 to 3, not nan"),
        (b'{"token": "t", "factors": {"1": 1e999}, "keep_error": true}', "feature 1 is 0 to 3, not inf"),
        (b'{"token": "t", "factors": {"1": ' + b"9" * 5000 + b'}, "keep_error": true}', "JSON object"),
        (json.dumps({**TOKEN, "factors": {str(i): 1 for i in range(257)}}).encode(), "At most 256 features"),
        (json.dumps({**TOKEN, "token": "t" * 70_000}).encode(), "at most 65,536 bytes"),
    ],
)
def test_an_edit_that_makes_no_sense_is_told_what_is_wrong(body, reason):
    with pytest.raises(BadQuery, match=reason):
        upload.read_edit(body, 96)


def test_an_edit_is_read_as_it_was_meant():
    body = json.dumps({"token": "t", "factors": {"0": 0, "95": 3, "7": 0.5}, "keep_error": False}).encode()
    assert upload.read_edit(body, 96) == ("t", {0: 0.0, 95: 3.0, 7: 0.5}, False)


def test_a_token_that_was_never_given_holds_nothing(client):
    assert client.post("/upload/edit.json", json=TOKEN).json() == {"is_held": False}
    assert client.get("/upload/similar.json?token=%00%ff").json() == {"is_held": False}
    assert client.get("/upload/similar.json").json() == {"is_held": False}
    assert client.get(f"/upload/similar.json?token={'x' * 300}").status_code == 400


def test_the_page_says_what_is_taken(run):
    found = upload.view(run, Query())
    assert (found.most_bytes, found.most_pixels, found.largest_factor) == (10 << 20, 64_000_000, 3.0)
