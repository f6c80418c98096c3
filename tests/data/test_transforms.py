import io
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from small_shards import AUGMENT, PREPROCESS, image_bytes

from vlm.data.images import UnreadableImageError, open_image
from vlm.data.transforms import Augment, Preprocess
from vlm.errors import ConfigError


def preprocess(**changes) -> Preprocess:
    return Preprocess(**{**PREPROCESS.to_mapping(), **changes})


def augment(**changes) -> Augment:
    values = {
        "crop_scale": [1.0, 1.0],
        "crop_ratio": [1.0, 1.0],
        "color_jitter": 0.0,
        "flip_probability": 0.0,
    }
    return Augment(**{**values, **changes})


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=-1).astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image)).permute(2, 0, 1)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (17, 23), (5, 3), (60, 100), (64, 9)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_shortest_has_the_pixels_of_torchvision(size: tuple[int, int], interpolation: str) -> None:
    """Resize scales the whole image, its long side rounded down; CenterCrop cuts at the rounded middle."""
    image, short = noise(*size), min(size)
    width, height = (int(8 * length / short) for length in size)
    left, top = round((width - 8) / 2), round((height - 8) / 2)
    whole = image.resize((width, height), Image.Resampling[interpolation.upper()])
    expected = whole.crop((left, top, left + 8, top + 8))
    assert torch.equal(preprocess(interpolation=interpolation)(image), as_tensor(expected))


@pytest.mark.parametrize("size", [(16, 4000), (4000, 16)])
def test_a_strip_is_cut_before_it_is_scaled(size: tuple[int, int]) -> None:
    image, short = gradient(*size), min(size)
    left, top = (round((int(8 * length / short) - 8) / 2) * 2 for length in size)
    near = image.crop((left, top, left + short, top + short)).resize((8, 8), Image.Resampling.BICUBIC)
    difference = preprocess()(image).int() - as_tensor(near).int()
    assert difference.abs().max() <= 1


def test_squash_keeps_every_edge():
    expected = gradient(40, 20).resize((8, 8), Image.Resampling.BILINEAR)
    result = preprocess(resize_mode="squash", interpolation="bilinear")(gradient(40, 20))
    assert torch.equal(result, as_tensor(expected))


def test_longest_puts_the_whole_image_on_the_background():
    result = preprocess(resize_mode="longest", background=[9, 8, 7])(gradient(40, 20))
    assert torch.equal(result[:, 2:6], as_tensor(gradient(40, 20).resize((8, 4), Image.Resampling.BICUBIC)))
    assert result[:, :2].flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]


@pytest.mark.parametrize(("mode", "clear"), [("RGBA", (200, 0, 0, 0)), ("LA", (100, 0)), ("PA", None)])
def test_transparent_pixels_show_the_background(mode, clear):
    palette = mode == "PA"
    data = image_bytes(0, mode="P", transparency=0) if palette else image_bytes(clear, mode=mode)
    result = preprocess(background=[10, 20, 30])(open_image(data))
    assert result.flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]


def test_half_transparent_pixels_mix_with_the_background():
    result = preprocess(background=[0, 0, 0])(open_image(image_bytes((200, 100, 50, 128), mode="RGBA")))
    assert result[:, 0, 0].tolist() == [100, 50, 25]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_every_mode_of_pillow_becomes_three_channels(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = preprocess()(open_image(image_bytes(0, mode=mode, kind=kind)))
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.uint8


def test_a_jpeg_far_larger_than_needed_is_decoded_smaller_with_nearly_the_same_pixels():
    buffer = io.BytesIO()
    gradient(640, 480).save(buffer, "JPEG", quality=95)
    image = open_image(buffer.getvalue())
    small = preprocess()(image)
    assert image.size == (80, 60)
    whole = preprocess()(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    assert (small.int() - whole.int()).abs().max() <= 3


def test_a_jpeg_of_about_the_size_needed_is_decoded_whole():
    buffer = io.BytesIO()
    gradient(31, 31).save(buffer, "JPEG")
    image = open_image(buffer.getvalue())
    preprocess()(image)
    assert image.size == (31, 31)


@pytest.mark.parametrize("data", [b"", b"GIF", image_bytes((1, 2, 3), size=(64, 64), kind="JPEG")[:400]])
def test_bytes_that_are_no_whole_image_raise_one_error(data):
    with pytest.raises(UnreadableImageError):
        preprocess()(open_image(data))


def test_an_image_of_more_pixels_than_pillow_allows_is_unreadable(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    with pytest.raises(UnreadableImageError, match="exceeds limit"):
        open_image(image_bytes((1, 2, 3)))


def test_preprocess_survives_json():
    values = json.loads(json.dumps(PREPROCESS.to_mapping()))
    assert Preprocess.from_mapping(values) == PREPROCESS
    with pytest.raises(ConfigError, match=r"preprocess\.mean is not a key"):
        Preprocess.from_mapping({**values, "mean": 0})


def test_an_augmentation_that_is_off_everywhere_is_the_centre_crop():
    image = gradient(40, 20)
    assert torch.equal(augment()(image, preprocess(), rng=random.Random(0)), preprocess()(image))


def test_augmentation_depends_on_its_seed_alone():
    image = gradient(40, 30)
    first, again, other = (AUGMENT(image, PREPROCESS, rng=random.Random(seed)) for seed in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_flip_mirrors_left_and_right_only():
    result = augment(flip_probability=1.0)(gradient(20, 20), preprocess(), rng=random.Random(0))
    assert torch.equal(result, preprocess()(gradient(20, 20)).flip(2))


def test_colour_changes_without_moving_anything():
    flat = Image.new("RGB", (9, 9), (120, 60, 30))
    result = augment(color_jitter=0.4)(flat, preprocess(), rng=random.Random(3))
    assert result.flatten(1).unique(dim=1).shape == (3, 1)
    assert result[:, 0, 0].tolist() != [120, 60, 30]


def test_crops_keep_scale_and_ratio_within_their_ranges():
    crop = augment(crop_scale=[0.25, 0.5], crop_ratio=[0.5, 2.0])
    rng = random.Random(0)
    boxes = np.array([crop._random_box((400, 300), rng) for _ in range(500)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 120_000, width / height
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 400).all()
    assert (boxes[:, 3] <= 300).all()
    assert 0.25 <= area.min() < 0.27
    assert 0.48 < area.max() <= 0.5 + 1e-9
    assert 0.5 <= ratio.min() < 0.55
    assert 1.8 < ratio.max() <= 2.0


def test_a_crop_that_can_never_fit_is_the_largest_in_the_centre():
    wide = augment(crop_ratio=[0.75, 1.25])._random_box((1000, 100), random.Random(0))
    assert wide == (437.5, 0, 562.5, 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: preprocess(image_size=0), "data.preprocess.image_size=0"),
        (lambda: preprocess(background=[0, 0, 256]), r"data.preprocess.background=\[0, 0, 256\]"),
        (lambda: preprocess(background=[0]), r"data.preprocess.background=\[0\]"),
        (
            lambda: preprocess(resize_mode="short"),
            "data.preprocess.resize_mode='short' is unknown; use shortest",
        ),
        (lambda: preprocess(interpolation="area"), "data.preprocess.interpolation='area'"),
        (lambda: augment(crop_scale=[0.9, 0.5]), "data.augment.crop_scale="),
        (lambda: augment(crop_scale=[0.9, 1.5]), "data.augment.crop_scale=.* at most 1"),
        (lambda: augment(crop_ratio=[0.0, 1.0]), "data.augment.crop_ratio="),
        (lambda: augment(flip_probability=2.0), "data.augment.flip_probability=2.0"),
        (lambda: augment(color_jitter=-1.0), "data.augment.color_jitter=-1.0"),
    ],
)
def test_a_wrong_number_names_its_key(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_size", "32", r"data\.preprocess\.image_size='32' must be a whole number of at least 1"),
        ("image_size", True, r"data\.preprocess\.image_size=True must be"),
        (
            "background",
            ["a", "b", "c"],
            r"data\.preprocess\.background=\['a', 'b', 'c'\] must be three numbers",
        ),
    ],
)
def test_what_is_no_number_names_its_key(name, value, message):
    read = preprocess()
    object.__setattr__(read, name, value)  # only tests compare the arguments with their annotations
    with pytest.raises(ConfigError, match=message):
        read.__post_init__()
