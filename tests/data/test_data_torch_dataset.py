import json
import multiprocessing
import zipfile

import pytest
import torch
from torch.utils.data import DataLoader

from duotune.data import ImageItem
from duotune.data.images import open_image
from duotune.data.torch_dataset import ImageDataset, check_images, collate
from duotune.data.transforms import TestTransform, TrainTransform
from duotune.errors import ConfigError, DataError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TRAIN, TEST = TrainTransform(16, MEAN, STD), TestTransform(16, MEAN, STD)


@pytest.fixture
def items(tmp_path, write_image):
    return [ImageItem(write_image(tmp_path / "cat" / f"{i}.png", seed=i, size=(30, 24)), i % 3) for i in range(10)]


def epochs(loader, numbers):
    """pixel_values of whole epochs, in the order of the items."""
    out = []
    for number in numbers:
        loader.dataset.set_epoch(number)
        batches = list(loader)
        order = torch.cat([b["index"] for b in batches]).argsort()
        out.append(torch.cat([b["pixel_values"] for b in batches])[order])
    return out


def test_rows_and_batches(items):
    dataset = ImageDataset(items, TEST)
    batch = collate([dataset[4], dataset[1]])
    assert len(dataset) == 10
    assert batch["pixel_values"].shape == (2, 3, 16, 16) and batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [1, 1] and batch["index"].tolist() == [4, 1]
    assert batch["labels"].dtype == batch["index"].dtype == torch.int64
    assert (batch["pixel_values"][0].numpy() == TEST(open_image(items[4]))).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_fixed_views(items, workers):
    """Epoch e shows view e mod V, also in workers that were started before the epoch was set."""
    dataset = ImageDataset(items, TRAIN, views=3, seed=1)
    loader = DataLoader(dataset, 4, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)
    shown = epochs(loader, range(7))
    for e in range(7):
        for f in range(e):
            same = [torch.equal(a, b) for a, b in zip(shown[e], shown[f])]
            assert all(same) if e % 3 == f % 3 else not any(same)


@pytest.mark.parametrize("workers", [0, 2])
def test_fresh_views(items, workers):
    make = lambda seed: DataLoader(
        ImageDataset(items, TRAIN, seed=seed),
        4,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    first, second, again = epochs(make(1), [0, 1, 0])
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(epochs(make(1), [1])[0], second)  # reproducible without the epochs before
    assert not torch.equal(epochs(make(2), [0])[0], first)


def test_workers_equal_the_main_process(items):
    for views in (0, 2):
        dataset = ImageDataset(items, TRAIN, views=views)
        loaders = [DataLoader(dataset, 3, collate_fn=collate, num_workers=w) for w in (0, 2)]
        for ours, theirs in zip(*(epochs(loader, [0, 1, 5]) for loader in loaders)):
            assert torch.equal(ours, theirs)


def test_shuffled_order_does_not_change_views(items):
    dataset = ImageDataset(items, TRAIN, views=2)
    straight, shuffled = (DataLoader(dataset, 3, shuffle=s, collate_fn=collate) for s in (False, True))
    assert torch.equal(epochs(straight, [1])[0], epochs(shuffled, [1])[0])


def test_views_belong_to_the_picture(items, tmp_path):
    """Neither the list it is in nor the folder it lies in changes a picture's views."""
    import shutil

    whole, part = ImageDataset(items, TRAIN, views=2), ImageDataset(items[6:8], TRAIN, views=2)
    shutil.copytree(tmp_path / "cat", tmp_path / "moved" / "cat")
    moved = ImageDataset([ImageItem(tmp_path / "moved" / "cat" / "7.png", 0)], TRAIN, views=2)
    for epoch in (0, 1):
        for dataset in (whole, part, moved):
            dataset.set_epoch(epoch)
        assert torch.equal(whole[7]["pixel_values"], part[1]["pixel_values"])
        assert torch.equal(whole[7]["pixel_values"], moved[0]["pixel_values"])


def test_repeated_shots_get_different_fresh_views(items):
    dataset = ImageDataset([items[0], items[0]], TRAIN)
    assert not torch.equal(dataset[0]["pixel_values"], dataset[1]["pixel_values"])


def test_spawned_workers_see_the_epoch(items):
    """Where processes are spawned, the dataset is pickled; the epoch stays shared."""
    dataset = ImageDataset(items[:4], TRAIN, views=2)
    spawn = multiprocessing.get_context("spawn")
    loader = DataLoader(
        dataset, 2, collate_fn=collate, num_workers=1, persistent_workers=True, multiprocessing_context=spawn
    )
    shown = epochs(loader, [0, 1])
    plain = epochs(DataLoader(dataset, 2, collate_fn=collate), [0, 1])
    assert all(torch.equal(a, b) for a, b in zip(shown, plain)) and not torch.equal(*shown)


def test_archive_in_workers(items, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for item in items:
            archive.write(item.path, f"cat/{item.path.name}")
    zipped = [ImageItem(tmp_path / "x.zip", i.label, f"cat/{i.path.name}") for i in items]
    open_image(zipped[0])  # the parent holds the archive open when workers start
    make = lambda source, workers: DataLoader(
        ImageDataset(source, TRAIN, views=1), 3, collate_fn=collate, num_workers=workers
    )
    assert torch.equal(epochs(make(zipped, 2), [0])[0], epochs(make(items, 0), [0])[0])


def test_keys(items):
    keys = {
        ImageDataset(items, TRAIN).key(),
        ImageDataset(items, TEST).key(),
        ImageDataset(items, TRAIN, views=2).key(),
        ImageDataset(items, TRAIN, views=2, seed=1).key(),
        ImageDataset(items, TRAIN, orientation=False).key(),
    }
    assert len(keys) == 5
    with pytest.raises(ConfigError, match="must not be negative"):
        ImageDataset(items, TRAIN, views=-1)


def break_images(items, numbers):
    for i in numbers:
        data = items[i].path.read_bytes()
        items[i].path.write_bytes(data[: len(data) // 2])


def test_an_unreadable_image_is_an_error_that_names_it(items):
    break_images(items, [2])
    dataset = ImageDataset(items, TEST)
    with pytest.raises(DataError, match="cannot read the image .*2.png"):
        dataset[2]
    with pytest.raises(DataError, match="cannot read the image .*2.png"):
        list(DataLoader(dataset, 5, collate_fn=collate, num_workers=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_skipped_and_named(items, workers):
    break_images(items, [2, 7])
    items[5].path.unlink()
    steps = []
    good, report = check_images(items, workers, 0.3, progress=lambda done, total: steps.append((done, total)))
    assert good == [item for i, item in enumerate(items) if i not in (2, 5, 7)]
    assert report.checked == 10 and list(report.broken) == [items[i].key for i in (2, 5, 7)]
    assert report.broken_share == 0.3 and steps[-1] == (10, 10)
    assert "3 of 10 images cannot be read and are skipped" in str(report) and "5.png: no such file" in str(report)
    assert json.loads(report.to_json())["broken"] == report.broken
    with pytest.raises(DataError, match="3 of 10 images cannot be read, more than max_broken_share=0.29 .*2.png"):
        check_images(items, workers, 0.29)


def test_good_images_and_repeated_items(items):
    good, report = check_images([*items, *items])
    assert good == [*items, *items] and report.checked == 10 and str(report) == "10 images checked, all can be read"
    assert check_images([])[0] == []
    with pytest.raises(ConfigError, match="max_broken_share must be 0..1"):
        check_images(items, max_broken_share=2)
