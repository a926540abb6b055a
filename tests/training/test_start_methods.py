"""Everything that goes to processes that decode can be pickled, as the start methods spawn and forkserver need it."""

import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from duotune import attach, load_backbone
from duotune.data.base import ImageItem
from duotune.data.detection import load_detection
from duotune.detection_evaluation import evaluate_detector
from duotune.evaluation import evaluate
from duotune.training import DetectionTrainingArguments, PromptTrainer, PromptTrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from coco_folder import write_folder  # noqa: E402
from tiny_glip import save_tiny_glip  # noqa: E402


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    splits = {"train": 4, "val": 1, "test": 2}
    return load_detection(write_folder(tmp_path_factory.mktemp("coco") / "things", splits=splits))


@pytest.fixture(scope="module")
def glip(tmp_path_factory):
    return load_backbone(str(save_tiny_glip(tmp_path_factory.mktemp("backbones") / "glip")), device="cpu")


@pytest.fixture
def sent(monkeypatch):
    """Names of the data sets of all loaders with workers: what a worker is started with makes the way there and back
    before the loader runs, here in this process."""
    seen = []
    iterator = DataLoader._get_iterator

    def check(loader):
        if loader.num_workers:
            seen.append(type(loader.dataset).__name__)
            parts = loader.dataset, loader.collate_fn, loader.worker_init_fn
            content = bytes(ForkingPickler.dumps(parts))
            assert len(content) < 200_000, f"{seen[-1]} takes {len(content)} bytes to each worker"
            dataset, collate, _ = ForkingPickler.loads(content)
            index = len(dataset) - 1
            collate(dataset.__getitems__([index]) if hasattr(dataset, "__getitems__") else [dataset[index]])
            loader.__dict__["num_workers"], loader.__dict__["prefetch_factor"] = 0, None
        return iterator(loader)

    monkeypatch.setattr(DataLoader, "_get_iterator", check)
    return seen


@pytest.mark.parametrize(("method", "views"), [("coop", 1), ("dpt", 0), ("dpt", 2), ("vpt", 0)])
def test_what_a_classifier_sends_to_workers(tiny_clip, picture_data, tmp_path, sent, method, views):
    model = attach(tiny_clip, method, picture_data.class_names, picture_data.template)
    args = PromptTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, views=views, dataloader_num_workers=2, disable_tqdm=True,
        metric_for_best="accuracy", cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    PromptTrainer(model, args, picture_data).train()
    evaluate(model, picture_data.test, progress=False)
    kinds = {"coop": {"SafeImages"}, "vpt": {"_Probe", "ImageDataset", "SafeImages"}}
    kinds["dpt"] = {"SafeImages", "PixelsAndFeatures"} if views else {"SafeImages", "ImageDataset", "_Probe"}
    assert kinds[method] <= set(sent)


@pytest.mark.parametrize("views", [0, 2])
def test_what_a_detector_sends_to_workers(glip, things, tmp_path, sent, views):
    model = attach(glip, "sdpt", things.class_names)
    args = DetectionTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, views=views, dataloader_num_workers=2, disable_tqdm=True,
        short_sides=[32], metric_for_best="loss", cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    PromptTrainer(model, args, things).train()
    evaluate_detector(model, things, progress=False)
    assert {"_Probe", "DetectionDataset", *(["MapsDataset"] if views else [])} <= set(sent)


@pytest.fixture
def start(request):
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("start", ["spawn"], indirect=True)
def test_a_classifier_is_measured_with_spawned_workers(tiny_clip, picture_data, tmp_path, start):
    broken = ImageItem(tmp_path / "absent.png", 0)
    model = attach(tiny_clip, "vpt", picture_data.class_names, picture_data.template)
    items = (*picture_data.test[:6], broken)
    alone, found = (evaluate(model, items, workers=n, progress=False, max_broken_share=0.5) for n in (0, 1))
    assert found.predictions == alone.predictions and len(found.predictions) == 6
    assert found.broken == alone.broken and list(found.broken) == [broken.key]


@pytest.mark.skipif(sys.platform == "win32", reason="forkserver is none of Windows's")
@pytest.mark.parametrize("start", ["forkserver"], indirect=True)
def test_a_detector_is_trained_with_workers_of_a_fork_server(glip, things, tmp_path, start):
    """Epoch 2 shows other views, so the number of the epoch reaches workers that outlive it."""
    changes = {"max_steps": 4, "per_device_train_batch_size": 2, "short_sides": [32, 48], "logging_steps": 1}
    curves = []
    for workers in (0, 1):
        args = DetectionTrainingArguments(
            output_dir=str(tmp_path), views=0, dataloader_num_workers=workers, logging_strategy="steps",
            dataloader_persistent_workers=workers > 0, disable_tqdm=True, save_strategy="no", **changes,
        )  # fmt: skip
        model = attach(glip, "sdpt", things.class_names)
        trainer = PromptTrainer(model, args, train_dataset=dataset_of(model, things.train))
        trainer.train()
        curves.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert len(curves[0]) == 4 and curves[1] == pytest.approx(curves[0], rel=1e-5)  # sums in another order


def dataset_of(model, items):
    from duotune.data.detection.captions import OneCaption
    from duotune.data.detection.torch_dataset import DetectionDataset
    from duotune.training.detection import detection_train_transform

    transform = detection_train_transform(model.backbone)
    return DetectionDataset(items, transform, model.backbone.normalize, OneCaption(model.method.caption), seed=1)
