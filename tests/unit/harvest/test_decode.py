import io
import warnings

import numpy as np
import pytest
from PIL import Image
from thresher.harvest.decode import ImageUnreadable, decode_image, thumbnail


def encode(image, kind, **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def test_an_rgb_picture_is_decoded_as_it_is(pictures):
    picture = pictures.picture()
    assert np.array_equal(np.asarray(decode_image(encode(picture, "PNG"))), np.asarray(picture))


def test_cmyk_becomes_rgb_as_pillow_converts_it(pictures):
    data = encode(pictures.picture(mode="CMYK"), "JPEG")
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    got = decode_image(data)
    assert got.mode == "RGB"
    assert np.array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind):
    samples = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    got = np.asarray(decode_image(encode(Image.fromarray(samples), kind)))
    assert np.array_equal(got, np.repeat((samples // 256).astype(np.uint8)[..., None], 3, axis=2))


def test_thirty_two_bit_samples_are_unreadable():
    with pytest.raises(ImageUnreadable, match="32-bit samples"):
        decode_image(encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))


def test_a_palette_gives_its_colours():
    palette = Image.new("P", (8, 8))
    palette.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    palette.putpixel((3, 2), 1)
    got = np.asarray(decode_image(encode(palette, "PNG")))
    assert tuple(got[2, 3]) == (200, 100, 50)
    assert tuple(got[0, 0]) == (10, 20, 30)


def test_a_palette_with_transparency_warns_nobody():
    palette = Image.new("P", (8, 8))
    palette.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = decode_image(encode(palette, "PNG", transparency=b"\0\x80"))
    assert tuple(np.asarray(got)[0, 0]) == (10, 20, 30)


def test_transparency_is_dropped_as_open_clips_own_conversion_does(pictures):
    picture = pictures.picture(mode="RGBA")
    got = decode_image(encode(picture, "PNG"))
    assert np.array_equal(np.asarray(got), np.asarray(picture)[..., :3])


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert tuple(np.asarray(decode_image(data))[0, 0]) == (255, 0, 0)


def test_exif_rotation_is_not_applied(pictures):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    data = encode(pictures.picture(size=(40, 20)), "JPEG", exif=exif)
    assert decode_image(data).size == (40, 20)


def test_a_truncated_jpeg_is_unreadable(pictures):
    data = pictures.encoded(suffix="jpg", quality=95)
    with pytest.raises(ImageUnreadable, match="truncated"):
        decode_image(data[: len(data) // 2])


def test_a_text_file_is_unreadable():
    with pytest.raises(ImageUnreadable, match="not an image"):
        decode_image(b"this is a note about a cat\n" * 40)


def test_an_empty_file_is_unreadable():
    with pytest.raises(ImageUnreadable, match="empty"):
        decode_image(b"")


def test_a_decompression_bomb_is_unreadable_and_not_decoded():
    bomb = encode(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ImageUnreadable, match="400000000 pixels"):
        decode_image(bomb)


def test_a_large_picture_below_the_bomb_limit_is_read_without_a_warning():
    big = encode(Image.new("1", (10_000, 9_500)), "PNG")  # above the 89 million pixels at which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(big).size == (10_000, 9_500)


def test_a_hair_thin_picture_is_unreadable():
    # resizing its short side to 224 pixels would make 224 x 1,120,000 of them
    with pytest.raises(ImageUnreadable, match="5000 x 1"):
        decode_image(encode(Image.new("RGB", (5000, 1)), "PNG"))


def test_a_thumbnail_has_its_long_side_at_the_limit(pictures):
    blob = thumbnail(pictures.picture(size=(600, 300)), 128)
    with Image.open(io.BytesIO(blob)) as opened:
        assert (opened.format, opened.size) == ("WEBP", (128, 64))


def test_a_thumbnail_is_never_enlarged(pictures):
    with Image.open(io.BytesIO(thumbnail(pictures.picture(size=(20, 10)), 128))) as opened:
        assert opened.size == (20, 10)


def test_a_small_webp_is_its_own_thumbnail(pictures):
    data = encode(pictures.picture(), "WEBP")
    assert thumbnail(decode_image(data), 128, data) is data


def test_a_webp_with_metadata_is_encoded_anew(pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(pictures.picture(), "WEBP", exif=exif)
    assert thumbnail(decode_image(data), 128, data) != data
