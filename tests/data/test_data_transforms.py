import math

import numpy as np
import pytest
from PIL import Image

from duotune.data.transforms import TestTransform, TrainTransform, normalise
from duotune.errors import ConfigError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(500, 375), (375, 500), (224, 224), (640, 480), (333, 100), (101, 57), (225, 224), (50, 49), (31, 1)]


def picture(width, height, seed=0):
    """Smooth shapes with some noise."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 7, width), np.linspace(0, 5, height))
    channels = np.stack([np.sin(x + y), np.cos(x * 2), np.sin(y * 3)], -1) * 100 + 128
    return Image.fromarray((channels + rng.normal(0, 12, channels.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [48, 224])
def test_test_transform_equals_clip_processor(size, side):
    """Up to the centre crop's rounding: transformers rounds half a pixel down, torchvision to even."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    image = picture(*size)
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    ours = TestTransform(side, MEAN, STD)(image)
    assert ours.shape == theirs.shape == (3, side, side) and ours.dtype == np.float32
    margin = int(side * max(size) / min(size)) - side
    if margin % 4 == 3:  # x.5 rounds up to even: one pixel further than floor
        theirs, ours = (theirs[:, :, 1:], ours[:, :, :-1]) if size[0] > size[1] else (theirs[:, 1:], ours[:, :-1])
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_crop_equals_torchvisions_arithmetic(size):
    """torchvision.transforms.functional.center_crop: int(round((height - crop_height) / 2.0))."""
    width, height = size
    short, long = min(size), max(size)
    new = (32, int(32 * long / short)) if width <= height else (int(32 * long / short), 32)
    resized = picture(*size).resize(new, Image.BICUBIC)
    left, top = int(round((new[0] - 32) / 2.0)), int(round((new[1] - 32) / 2.0))
    expected = resized.crop((left, top, left + 32, top + 32))
    assert TestTransform(32, MEAN, STD).resize_and_crop(picture(*size)).tobytes() == expected.tobytes()


def reference_crop(width, height, scale, ratio, rng):
    """torchvision's RandomResizedCrop.get_params, transcribed with NumPy's draws; returns top, left, height, width."""
    area = height * width
    log_ratio = np.log(np.array(ratio))
    for _ in range(10):
        target_area = area * rng.uniform(scale[0], scale[1])
        aspect_ratio = np.exp(rng.uniform(log_ratio[0], log_ratio[1]))
        w = int(round(math.sqrt(target_area * aspect_ratio)))
        h = int(round(math.sqrt(target_area / aspect_ratio)))
        if 0 < w <= width and 0 < h <= height:
            i = rng.integers(0, height - h + 1)
            j = rng.integers(0, width - w + 1)
            return i, j, h, w
    in_ratio = float(width) / float(height)
    if in_ratio < min(ratio):
        w = width
        h = int(round(w / min(ratio)))
    elif in_ratio > max(ratio):
        h = height
        w = int(round(h * max(ratio)))
    else:
        w = width
        h = height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(500, 375), (60, 80), (400, 20), (20, 400), (3, 3), (1, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_random_crop_equals_torchvisions_algorithm(size, scale):
    transform = TrainTransform(32, MEAN, STD, scale=scale)
    for seed in range(200):
        top, left, h, w = reference_crop(*size, scale, (3 / 4, 4 / 3), np.random.default_rng(seed))
        assert transform.crop_box(*size, np.random.default_rng(seed)) == (left, top, w, h)


def test_long_pictures_fall_back_to_the_centre():
    transform = TrainTransform(32, MEAN, STD, scale=(0.9, 1.0))
    assert transform.crop_box(400, 30, np.random.default_rng(0)) == (180, 0, 40, 30)
    assert transform.crop_box(30, 400, np.random.default_rng(0)) == (0, 180, 30, 40)


def test_random_crop_covers_what_it_should():
    transform, rng = TrainTransform(32, MEAN, STD), np.random.default_rng(0)
    boxes = np.array([transform.crop_box(400, 300, rng) for _ in range(3000)])
    share = boxes[:, 2] * boxes[:, 3] / (400 * 300)
    ratio = boxes[:, 2] / boxes[:, 3]
    assert 0.075 < share.min() < 0.1 and share.max() > 0.95
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= 400).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 300).all()


def test_train_transform_pixels():
    """Crop, resize, flip, normalise, one after the other."""
    image = picture(90, 70)
    flips = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        top, left, h, w = reference_crop(90, 70, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        expected = np.asarray(image.crop((left, top, left + w, top + h)).resize((24, 24), Image.BICUBIC), np.float64)
        if rng.random() < 0.5:
            expected, flips = expected[:, ::-1], flips + 1
        expected = ((expected / 255 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)
        ours = TrainTransform(24, MEAN, STD)(image, seed)
        assert ours.shape == (3, 24, 24) and ours.dtype == np.float32 and ours.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert 10 <= flips <= 30


def test_same_seed_same_pixels():
    image, transform = picture(60, 50), TrainTransform(16, MEAN, STD)
    assert (transform(image, 3) == transform(image, np.random.default_rng(3))).all()
    assert not (transform(image, 3) == transform(image, 4)).all()
    never = TrainTransform(16, MEAN, STD, scale=(1, 1), ratio=(1.2, 1.2), flip=0.0)
    always = TrainTransform(16, MEAN, STD, scale=(1, 1), ratio=(1.2, 1.2), flip=1.0)
    assert (never(image, 0) == always(image, 0)[:, :, ::-1]).all()


def test_normalise():
    image = picture(20, 30)
    values = normalise(image, MEAN, STD)
    plain = (np.asarray(image, np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    assert (values == plain.transpose(2, 0, 1)).all() and values.dtype == np.float32  # bit for bit


def test_keys_differ_with_every_setting():
    half = (0.5, 0.5, 0.5)
    keys = [
        TestTransform(32, MEAN, STD).key(),
        TestTransform(33, MEAN, STD).key(),
        TestTransform(32, half, STD).key(),
        TestTransform(32, MEAN, half).key(),
        TrainTransform(32, MEAN, STD).key(),
        TrainTransform(32, MEAN, STD, scale=(0.5, 1)).key(),
        TrainTransform(32, MEAN, STD, ratio=(1, 1)).key(),
        TrainTransform(32, MEAN, STD, flip=0).key(),
    ]
    assert len(set(keys)) == len(keys)
    assert TrainTransform(32, MEAN, STD).key() == keys[4]


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: TestTransform(0, MEAN, STD), "size must be at least 1"),
        (lambda: TestTransform(8, MEAN, (1, 1, 0)), "std above 0"),
        (lambda: TestTransform(0, MEAN[:2], STD), "size must.*; mean and std"),
        (lambda: TrainTransform(8, MEAN, STD, scale=(0, 1)), "scale must be"),
        (lambda: TrainTransform(8, MEAN, STD, ratio=(2, 1)), "ratio"),
        (lambda: TrainTransform(8, MEAN, STD, flip=2), "probability"),
    ],
)
def test_faulty_settings(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


@pytest.mark.parametrize("size", [(1, 3000), (4097, 2), (7, 1401), (60, 5000)])
def test_a_line_of_a_picture_is_never_resized_whole(size, monkeypatch):
    transform, image = TestTransform(48, (0.5,) * 3, (0.25,) * 3), picture(*size)
    made = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *a, **k: made.append(to) or resize(self, to, *a, **k))
    got = np.asarray(transform.resize_and_crop(image), dtype=int)
    assert made == [(48, 48)]
    monkeypatch.setattr("duotune.data.transforms.LONGEST", math.inf)
    whole = np.asarray(transform.resize_and_crop(image), dtype=int)
    assert got.shape == whole.shape == (48, 48, 3) and np.abs(got - whole).max() <= 1  # of 255
