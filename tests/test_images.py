"""Photographs at the door."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data

from detectors.errors import InputError
from restorers.degradation import add_noise, crop_to_multiple, reduce
from restorers.images import EMBEDDED, EMBEDDED_COLOUR, load_photos, read_image
from restorers.metric import luminance, psnr, ssim


def picture(height: int = 20, width: int = 24, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# ---- reading


def test_grey_and_colour_are_read_as_they_are(tmp_path: Path) -> None:
    colour, grey = picture(), picture(channels=1)
    assert np.array_equal(read_image(write(tmp_path / "c.png", colour), 3), colour)
    assert np.array_equal(read_image(write(tmp_path / "g.png", grey), 1), grey)
    from_colour = read_image(tmp_path / "c.png", 1)
    np.testing.assert_allclose(from_colour, colour @ [0.299, 0.587, 0.114], atol=1)


def test_sixteen_bits_lose_the_lower_half(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [40000, 65535, 65280]], dtype=np.uint16)
    found = read_image(write(tmp_path / "deep.png", values), 1)
    assert found.tolist() == [[0, 0, 1], [156, 255, 255]]


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.full((4, 4), 0.5, np.float32), r"x\.tiff has floating-point values: save it with 8 or 16 bits"),
        (np.full((4, 4), 255, np.int32), r"x\.tiff has 32 bits per pixel and none above 255: save it with 8 bits"),
        (np.full((4, 4), 65536, np.int32), r"x\.tiff has values outside 16 bits"),
    ],
    ids=["float", "dark", "large"],
)
def test_values_that_would_be_black(pixels: np.ndarray, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_image(write(tmp_path / "x.tiff", pixels), 1)


def test_thirty_two_bits_with_values_of_sixteen(tmp_path: Path) -> None:
    values = np.array([[256, 40000]], dtype=np.int32)
    assert read_image(write(tmp_path / "x.tiff", values), 1).tolist() == [[1, 156]]


def test_images_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "huge.png", picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"huge\.png cannot be read as an image .*exceeds limit"):
        read_image(path, 3)


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(picture(4, 4)).quantize(8)
    image.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png", 3), np.asarray(image.convert("RGB")))


def test_opaque_alpha_is_dropped_and_transparency_is_refused(tmp_path: Path) -> None:
    pixels = np.concatenate([picture(), np.full((20, 24, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(read_image(write(tmp_path / "opaque.png", pixels), 3), pixels[..., :3])
    pixels[3, 4, 3] = 100
    with pytest.raises(InputError, match=r"clear\.png has transparent places: flatten it"):
        read_image(write(tmp_path / "clear.png", pixels), 3)


def test_grey_where_colour_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"g\.png is grey, but the network restores colour"):
        read_image(write(tmp_path / "g.png", picture(channels=1)), 3)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n1234"])
def test_unreadable_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.png cannot be read as an image"):
        read_image(tmp_path / "broken.png", 3)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.png", picture(64, 64)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"half\.png cannot be read"):
        read_image(tmp_path / "half.png", 3)


# ---- splits


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"": 20}, {"train": 16, "search": 2, "test": 2}),
        ({"": 3}, {"train": 1, "search": 1, "test": 1}),
        ({"train": 20, "val": 3}, {"train": 18, "search": 2, "test": 3}),
        ({"train": 20, "val": 3, "test": 4}, {"train": 20, "search": 3, "test": 4}),
        ({"train": 20, "search": 2, "test": 4}, {"train": 20, "search": 2, "test": 4}),
    ],
)
def test_splits_share_no_image(folders: dict[str, int], expected: dict[str, int], tmp_path: Path) -> None:
    number = 0
    for name, count in folders.items():
        for _ in range(count):
            write(tmp_path / name / f"{number:03d}.png", picture(8, 8, 1, seed=number))
            number += 1
    (tmp_path / "notes.txt").write_text("not an image")
    splits = load_photos(tmp_path, 1, 8)
    assert {role: len(photos) for role, photos in splits.items()} == expected
    names = [name for photos in splits.values() for name in photos.names]
    assert len(set(names)) == len(names) == number


def test_splits_by_name(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write(tmp_path / name / f"{number}.png", picture(8, 8, 1))
    assert load_photos(tmp_path, 1, 8, splits=("c", "a", "b"))["search"].names == ("0.png",)
    with pytest.raises(InputError, match=r"There is no folder .*/d"):
        load_photos(tmp_path, 1, 8, splits=("c", "a", "d"))
    with pytest.raises(InputError, match="2 names of splits were given"):
        load_photos(tmp_path, 1, 8, splits=("c", "a"))


def test_folders_that_do_not_go(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no folder .*absent"):
        load_photos(tmp_path / "absent", 1, 8)
    with pytest.raises(InputError, match="has 0 images"):
        load_photos(tmp_path, 1, 8)
    write(tmp_path / "train" / "a.png", picture(8, 8, 1))
    with pytest.raises(InputError, match="neither 'test' nor 'val'"):
        load_photos(tmp_path, 1, 8)
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="train split"):
        load_photos(tmp_path, 1, 8)


def test_images_smaller_than_a_patch(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", picture(20, 24 - 10 * number, 1))
    with pytest.raises(InputError, match=r"1\.png is 14x20, but sides of 16 pixels are needed"):
        load_photos(tmp_path, 1, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_embedded_photos(channels: int) -> None:
    splits = load_photos("photos", channels, 48)
    names = [name for photos in splits.values() for name in photos.names]
    assert len(set(names)) == len(names) and all(len(photos) for photos in splits.values())
    assert all(p.ndim == (2 if channels == 1 else 3) for photos in splits.values() for p in photos.pixels)
    expected = [n for group in EMBEDDED.values() for n in group if channels == 1 or n in EMBEDDED_COLOUR]
    assert names == expected
    if channels == 3:
        assert np.array_equal(splits["train"].pixels[0], data.astronaut())


# ---- degradation


def test_noise_has_its_level_and_follows_the_seed() -> None:
    clean = np.full((200, 200), 0.5, np.float32)
    noisy = add_noise(clean, 25, (1, 2))
    assert (noisy - clean).std() * 255 == pytest.approx(25, rel=0.02) and abs((noisy - clean).mean()) < 1e-3
    assert np.array_equal(noisy, add_noise(clean, 25, (1, 2)))
    assert not np.array_equal(noisy, add_noise(clean, 25, (1, 3)))
    assert noisy.min() < 0.2 and add_noise(clean * 0, 25, (0,)).min() < 0  # not clipped


def bicubic(size: int, scale: int) -> np.ndarray:
    """Keys' kernel with a = -0.5, stretched by the scale: a (size / scale, size) matrix without a border rule."""
    centers = (np.arange(size // scale) + 0.5) * scale - 0.5
    x = np.abs(np.arange(size) - centers[:, None]) / scale
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    kernel = np.where(x <= 1, near, np.where(x < 2, far, 0))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("scale", [2, 4])
def test_reduction_is_antialiased_bicubic(scale: int) -> None:
    pixels = ndimage.uniform_filter(picture(32, 40, 1).astype(float), 3).round().astype(np.uint8)
    expected = bicubic(32, scale) @ pixels @ bicubic(40, scale).T
    np.testing.assert_allclose(reduce(pixels, scale), expected.clip(0, 255), atol=1.01)


def test_colours_are_reduced_alone() -> None:
    pixels = picture(16, 16)
    found = reduce(pixels, 2)
    assert all(np.array_equal(found[..., c], reduce(np.ascontiguousarray(pixels[..., c]), 2)) for c in range(3))


def test_crop_to_multiple() -> None:
    pixels = picture(19, 22)
    assert np.array_equal(crop_to_multiple(pixels, 4), pixels[:16, :20])


# ---- metric


def test_psnr_by_hand() -> None:
    clean = np.full((8, 8), 0.5)
    assert psnr(clean + 0.1, clean) == pytest.approx(20)
    restored = clean.copy()
    restored[0] = 0.6  # in the border alone
    assert psnr(restored, clean) == pytest.approx(20 + 10 * np.log10(8))
    assert psnr(restored + 1e-9, clean, shave=1) == 100
    assert psnr(np.full((8, 8), 3.0), np.ones((8, 8)) - 0.1) == pytest.approx(20)  # clipped to 1


def test_equal_images_have_a_hundred_and_not_infinitely_many() -> None:
    """A white page or a black sky among the images would make every mean infinite."""
    flat, other = np.full((8, 8), 0.5), np.full((8, 8), 0.6)
    assert [psnr(flat, flat), psnr(other, flat)] == pytest.approx([100, 20])


def test_luminance_is_bt601() -> None:
    colours = np.array([[[0, 0, 0], [1, 1, 1], [1, 0, 0]]], dtype=float)
    np.testing.assert_allclose(luminance(colours), [[16 / 255, 235 / 255, (16 + 65.481) / 255]], rtol=1e-4)


def test_psnr_of_luminance() -> None:
    clean, restored = picture(seed=1) / 255, picture(seed=2) / 255
    assert psnr(restored, clean, y_only=True) == pytest.approx(psnr(luminance(restored), luminance(clean)))


def test_ssim_of_equal_and_of_unlike_images() -> None:
    clean, other = picture(seed=1) / 255, picture(seed=2) / 255
    assert ssim(clean, clean) == pytest.approx(1) and abs(ssim(other, clean)) < 0.2
    assert ssim(clean, clean, shave=2, y_only=True) == pytest.approx(1)
