from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gpufut.demo.photos import BadInput, BadPicture, Photo, decode, photos_in, shipped_photos


def photo_at(path):
    return Photo(path.stem, path)


def test_scikit_image_ships_at_least_twelve_photographs():
    found = shipped_photos()

    assert len(found) >= 12
    assert len({photo.path for photo in found}) == len({photo.name for photo in found})
    for photo in found:
        assert min(decode(photo, 100).grey.shape) > 30


def test_too_few_shipped_photographs_is_bad_input(monkeypatch):
    monkeypatch.setattr("gpufut.demo.photos.SHIPPED", ("astronaut.png", "gone.png"))

    with pytest.raises(BadInput, match=r"carries 1 of the photographs.*--input"):
        shipped_photos()


def test_folder_gives_its_pictures_by_name_and_nothing_else(draw):
    for name in ("b.PNG", "a.jpg", "c.jpeg"):
        folder = draw(name).parent
    (folder / "notes.txt").write_text("not a picture")
    (folder / "folder.png").mkdir()

    assert [photo.name for photo in photos_in(folder)] == ["a", "b", "c"]


def test_pictures_that_differ_in_their_ending_only_have_different_names(draw):
    draw("a.png")
    folder = draw("a.jpg").parent

    assert [photo.name for photo in photos_in(folder)] == ["a.jpg", "a.png"]


def test_no_folder_or_an_empty_one_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no picture in"):
        photos_in(tmp_path)
    with pytest.raises(BadInput, match="No such file"):
        photos_in(tmp_path / "missing")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I", "I;16"])
def test_every_mode_of_pixels_decodes_to_the_same_grey(tmp_path, mode):
    grey = np.tile(np.array([0, 255], np.uint8), (4, 8))
    if mode in ("I", "I;16"):
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / "p.png")

    np.testing.assert_array_equal(decode(photo_at(tmp_path / "p.png"), 100).grey, grey)


def test_transparency_is_dropped(tmp_path):
    pixels = np.full((5, 5, 4), 200, np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "p.png")

    assert (decode(photo_at(tmp_path / "p.png"), 100).grey == 200).all()


def test_rotation_mark_of_a_camera_is_obeyed(tmp_path):
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "p.jpg", exif=exif)

    assert decode(photo_at(tmp_path / "p.jpg"), 100).grey.shape == (20, 10)


def test_large_pictures_are_reduced_and_small_ones_are_not(draw):
    large, small = photo_at(draw("l.png", 300, 150)), photo_at(draw("s.png", 30, 15))

    assert decode(large, 100).grey.shape == (50, 100)
    assert decode(large, 100).source_pixels == 300 * 150
    assert decode(small, 100).grey.shape == (15, 30)
    assert max(decode(large, 300).preview.shape) <= 240


def test_broken_pictures_are_named_in_one_line(draw, tmp_path):
    truncated = draw("truncated.png", 60, 60)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    text = tmp_path / "text.jpg"
    text.write_text("this is no JPEG")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (truncated, text, empty, tmp_path / "missing.png", draw("tiny.png", 2, 50)):
        with pytest.raises(BadPicture) as caught:
            decode(photo_at(path), 100)

        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
