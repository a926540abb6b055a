"""Frozen features: cached equals computed, views are those of the data set, broken images are named."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from closeness import close
from duotune.data.base import ImageItem
from duotune.data.images import open_image
from duotune.data.torch_dataset import ImageDataset
from duotune.errors import ConfigError, DataError
from duotune.training.cache import FeatureCache
from duotune.training.features import evaluation_transform, frozen_features, train_transform


@pytest.fixture
def items(picture_data):
    return picture_data.train[::4]


def test_test_features_are_the_towers(tiny_clip, items):
    transform = evaluation_transform(tiny_clip)
    pixels = torch.stack([torch.from_numpy(transform(open_image(item))) for item in items])
    with torch.no_grad():
        expected = tiny_clip.encode_image(pixels)
    frozen = frozen_features(tiny_clip, items, transform, workers=0, progress=False)
    assert_close(frozen.features[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert frozen.features.dtype == torch.float32 and frozen.items == items and frozen.broken == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_those_that_the_data_set_shows(tiny_clip, items, workers):
    transform, views = train_transform(tiny_clip), 3
    frozen = frozen_features(tiny_clip, items, transform, views, seed=5, batch_size=4, workers=workers, progress=False)
    shown = ImageDataset(items, transform, views, seed=5)
    for view in range(views):
        shown.set_epoch(view + views)  # the views come again
        pixels = torch.stack([shown[i]["pixel_values"] for i in range(len(items))])
        with torch.no_grad():
            assert_close(frozen.features[:, view], tiny_clip.encode_image(pixels), rtol=1e-5, atol=1e-6)
    assert (frozen.features[:, 0] - frozen.features[:, 1]).abs().max() > 1e-3


def test_the_second_run_decodes_nothing_and_gets_the_same(tiny_clip, items, tmp_path, monkeypatch):
    transform = train_transform(tiny_clip)
    first = frozen_features(
        tiny_clip, items, transform, 2, seed=5, cache=FeatureCache(tmp_path), workers=0, progress=False
    )

    def decode(*_):
        raise AssertionError("an image was decoded although its features are cached")

    monkeypatch.setattr("duotune.training.features.open_image", decode)
    cache = FeatureCache(tmp_path)
    second = frozen_features(tiny_clip, items, transform, 2, seed=5, cache=cache, workers=0, progress=False)
    assert torch.equal(first.features, second.features)
    assert (cache.statistics.hits, cache.statistics.misses) == (2 * len(items), 0)
    # another seed or another view number is another picture
    with pytest.raises(AssertionError, match="decoded"):
        frozen_features(tiny_clip, items, transform, 2, seed=6, cache=cache, workers=0, progress=False)
    with pytest.raises(AssertionError, match="decoded"):
        frozen_features(tiny_clip, items, transform, 3, seed=5, cache=cache, workers=0, progress=False)


def test_what_is_kept_was_not_computed_under_the_callers_autocast(tiny_clip, items, tmp_path):
    cache, transform = FeatureCache(tmp_path), evaluation_transform(tiny_clip)
    with torch.autocast("cpu", torch.bfloat16):
        frozen_features(tiny_clip, items, transform, cache=cache, workers=0, progress=False)
    kept = frozen_features(tiny_clip, items, transform, cache=cache, workers=0, progress=False).features
    assert cache.statistics.hits == len(items)
    assert close(kept, frozen_features(tiny_clip, items, transform, workers=0, progress=False).features)


def test_a_changed_image_and_a_lost_shard_are_computed_anew(tiny_clip, tmp_path):
    path = tmp_path / "pictures" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (40, 40), "red").save(path)
    items, transform, cache = (ImageItem(path, 0),), evaluation_transform(tiny_clip), FeatureCache(tmp_path / "cache")
    run = lambda: frozen_features(tiny_clip, items, transform, cache=cache, workers=0, progress=False).features
    red = run()
    Image.new("RGB", (40, 40), "blue").save(path)
    blue = run()
    assert (red - blue).abs().max() > 1e-3
    for shard in (tmp_path / "cache").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-10])
    assert close(run(), blue)
    assert cache.statistics.corrupt >= 1


def test_another_backbone_never_gets_these_features(tiny_clip, items, tmp_path, tmp_path_factory, make_tiny_clip):
    from duotune.backbones import load_backbone

    other = load_backbone(str(make_tiny_clip(tmp_path_factory.mktemp("other"), seed=1)), device="cpu")
    cache, transform = FeatureCache(tmp_path), evaluation_transform(tiny_clip)
    ours = frozen_features(tiny_clip, items, transform, cache=cache, workers=0, progress=False)
    theirs = frozen_features(other, items, transform, cache=cache, workers=0, progress=False)
    assert cache.statistics.hits == 0
    assert (ours.features - theirs.features).abs().max() > 1e-3


@pytest.mark.parametrize("cached", [False, True])
def test_broken_images_are_named_and_left_out_up_to_a_share(tiny_clip, picture_data, tmp_path, cached):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no more")
    items = (*picture_data.test[:5], ImageItem(broken, 1), ImageItem(tmp_path / "absent.png", 1))
    cache = FeatureCache(tmp_path / "cache") if cached else None
    options = {"cache": cache, "workers": 0, "progress": False}
    for _ in range(2):
        frozen = frozen_features(tiny_clip, items, evaluation_transform(tiny_clip), max_broken_share=0.5, **options)
        assert frozen.items == items[:5] and frozen.features.shape == (5, 1, 32)
        assert set(frozen.broken) == {str(broken), str(tmp_path / "absent.png")}
        assert np.isfinite(frozen.features.numpy()).all() and (frozen.features.abs().sum(-1) > 0).all()
    with pytest.raises(DataError, match="2 of 7 images cannot be read.*broken.png"):
        frozen_features(tiny_clip, items, evaluation_transform(tiny_clip), max_broken_share=0.2, **options)


def test_fresh_views_cannot_be_cached(tiny_clip, items):
    with pytest.raises(ConfigError, match="fresh views"):
        frozen_features(tiny_clip, items, train_transform(tiny_clip), views=0)


def test_a_file_that_cannot_be_hashed_is_told_like_any_other(tiny_clip, items, tmp_path):
    absent = ImageItem(tmp_path / "absent.png", 0)
    cache, transform = FeatureCache(tmp_path / "cache"), evaluation_transform(tiny_clip)
    how = dict(cache=cache, workers=0, progress=False, max_broken_share=0.5)
    frozen = frozen_features(tiny_clip, (*items, absent), transform, **how)
    assert "absent.png: no such file" in frozen.broken[absent.key] and frozen.items == tuple(items)
