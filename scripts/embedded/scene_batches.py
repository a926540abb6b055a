"""Batches of composed scenes with captions for pre-training, and the scenes that are watched meanwhile."""

from __future__ import annotations

import numpy as np
import torch
from holdout import split
from scenes import CANVAS, Distribution
from torch import Tensor

from duotune.grounding import build_caption
from duotune.metrics.detection import BoxPrediction, DetectionMetrics
from duotune.models.glip import GlipProcessor

LONGEST_CAPTION = 128
SCENES_WATCHED, CLASSES_WATCHED = 120, 40
REUSE, KEPT = 3, 1500
GRIDS = 0.4  # share of grids among the scenes of the last stage


def pixel_values(pixels: np.ndarray, processor: GlipProcessor) -> Tensor:
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S), as `GlipProcessor.preprocess` gives for pictures of that size."""
    x = torch.from_numpy(pixels[..., ::-1].astype(np.float32))
    return ((x - torch.tensor(processor.pixel_mean)) / torch.tensor(processor.pixel_std)).permute(0, 3, 1, 2)


def inclusive(boxes: np.ndarray) -> Tensor:
    """Boxes with width = x2 - x1 -> GLIP's inclusive corners."""
    return torch.from_numpy((boxes - [0, 0, 1, 1]).astype(np.float32))


class Batches:
    """Endless batches of scenes with captions."""

    def __init__(self, images, records, processor, size, seed):
        self.scenes = Distribution(images, records, split(records)[0])
        self.processor, self.size, self.rng = processor, size, np.random.default_rng(seed)
        self.kept: list[tuple] = []

    def _drawn(self, mild: float):
        """A scene, fresh or shown before: (pixels, boxes, concepts)."""
        if len(self.kept) < self.size * 4 or self.rng.random() < 1 / REUSE:
            if self.rng.random() < GRIDS:
                scene, concepts = self.scenes.grid(self.rng, (3, 3, 4))
            else:
                scene, concepts = self.scenes.scene(self.rng, mild=mild)
            place = len(self.kept) if len(self.kept) < KEPT else int(self.rng.integers(KEPT))
            self.kept[place : place + 1] = [(scene.pixels, scene.boxes, concepts)]
            return self.kept[place]
        return self.kept[self.rng.integers(len(self.kept))]

    def grids(self) -> dict:
        """A batch of grids without captions."""
        for _ in range(max(1, self.size // REUSE)):
            scene, concepts = self.scenes.grid(self.rng)
            place = len(self.kept) if len(self.kept) < KEPT else int(self.rng.integers(KEPT))
            self.kept[place : place + 1] = [(scene.pixels, scene.boxes, concepts)]
        drawn = [self.kept[k] for k in self.rng.integers(len(self.kept), size=self.size)]
        return dict(
            pixels=pixel_values(np.stack([pixels for pixels, _, _ in drawn]), self.processor),
            labels=[dict(boxes=inclusive(boxes)) for _, boxes, _ in drawn],
            concepts=[torch.tensor(concepts) for _, _, concepts in drawn],
        )

    def __call__(self, mild: float) -> dict:
        pictures, labels, texts, every = [], [], [], []
        for _ in range(self.size):
            pixels, boxes, concepts = self._drawn(mild)
            if self.rng.random() < 0.5:
                pixels, boxes = pixels[:, ::-1], boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [CANVAS, 0, CANVAS, 0]
            names, places = self.scenes.caption(concepts, self.rng)
            caption = build_caption(names, self.processor.tokenizer, LONGEST_CAPTION)
            texts.append(caption.text)
            pictures.append(pixels)
            labels.append(
                dict(
                    boxes=inclusive(boxes),
                    positive_map=caption.positive_map(places),
                    names=caption.positive_map(range(len(names))),
                    places=torch.tensor(places),
                )
            )
            every.append(torch.tensor(concepts))
        pixels = pixel_values(np.stack(pictures), self.processor)
        return dict(pixels=pixels, labels=labels, concepts=every, **self.processor.tokenize(texts))


def mapped(value, change):
    """Nested dicts and lists with every leaf changed."""
    if isinstance(value, dict):
        return {k: mapped(v, change) for k, v in value.items()}
    return [mapped(v, change) for v in value] if isinstance(value, list) else change(value)


def compose_ahead(queue, progress, *args):
    torch.set_num_threads(1)
    batches = Batches(*args)
    while progress.value < 0:
        queue.put(mapped(batches.grids(), torch.Tensor.numpy))
    batches.kept.clear()
    while True:  # arrays, not tensors: these would pass through shared memory, which times out on a busy machine
        queue.put(mapped(batches(max(0.0, 0.8 * (1 - progress.value / 0.3))), torch.Tensor.numpy))


class WatchedScene:
    """A scene with ground truth, in the form that `DetectionMetrics` reads."""

    neg_labels = not_exhaustive_labels = ()

    def __init__(self, number: int, boxes: np.ndarray, labels: list[int], size: int):
        self.image_id, self.width, self.height = number, size, size
        self.boxes, self.labels = boxes, np.array(labels, dtype=np.int64)
        self.iscrowd = np.zeros(len(boxes), bool)
        self.area = (boxes[:, 2:] - boxes[:, :2]).prod(1).astype(np.float64)


class Watched:
    """Zero-shot AP on scenes of kept-back drawings of concepts that pre-training knows: the number to watch."""

    def __init__(self, images, records, processor, scenes=SCENES_WATCHED, classes=CLASSES_WATCHED, seed=5):
        _, held, back = split(records)
        allowed = [i for i in back if records[i]["concept"] not in held]
        rng, source = np.random.default_rng(seed), Distribution(images, records, allowed)
        chosen = rng.choice(len(source.concepts), classes, replace=False)
        source.concepts = [source.concepts[k] for k in chosen]
        source.names, source.subgroups = [source.names[k] for k in chosen], [source.subgroups[k] for k in chosen]
        source.of_subgroup = {s: [k for k, t in enumerate(source.subgroups) if s == t] for s in source.subgroups}
        source.number = {c: k for k, c in enumerate(source.concepts)}
        self.processor, self.names = processor, source.names
        drawn = [source.scene(rng, mild=0.5) for _ in range(scenes)]
        self.pixels = np.stack([scene.pixels for scene, _ in drawn])
        self.items = [WatchedScene(k, s.boxes, labels, CANVAS) for k, (s, labels) in enumerate(drawn)]

    @torch.no_grad()
    def __call__(self, model) -> tuple[float, float]:
        """(AP, AP50); all classes in as many captions as they need."""
        captions = [self.processor.caption(names) for names in self.processor.chunk_class_names(self.names, 20)]
        model.eval()
        found = [[] for _ in self.items]
        for start in range(0, len(self.items), 50):
            x = pixel_values(self.pixels[start : start + 50], self.processor).to(model.device)
            maps = model.model.encode_image(x)
            first = 0
            for caption in captions:
                text = {k: v.to(model.device) for k, v in self.processor.tokenize([caption.text] * len(x)).items()}
                out = model(feature_maps=maps, **text)
                sizes = [(CANVAS, CANVAS)] * len(x)
                rows = self.processor.post_process_object_detection(out, caption, sizes, score_threshold=0.01)
                for k, row in enumerate(rows):
                    found[start + k].append((row["boxes"].cpu(), row["scores"].cpu(), row["labels"].cpu() + first))
                first += len(caption.names)
        model.train()
        predictions = []
        for parts in found:
            boxes, scores, labels = (torch.cat(p) for p in zip(*parts))
            predictions.append(
                BoxPrediction((boxes + torch.tensor([0, 0, 1, 1])).numpy(), scores.numpy(), labels.numpy())
            )
        metrics = DetectionMetrics.measure(self.items, predictions, self.names)
        return round(metrics.ap, 2), round(metrics.ap50, 2)
