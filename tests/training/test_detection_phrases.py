"""Sentences and their phrases: what a detector finds of them, from Python and from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from duotune import DetectionTrainingArguments, PromptTrainer, attach, load_backbone, load_detection
from duotune.cli import main
from duotune.data.detection.flickr30k import by_occurrence
from duotune.detection_evaluation import evaluate_detector, evaluate_phrases
from duotune.errors import ClassNamesError, ConfigError, DataError
from duotune.metrics import PhraseRecall

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from coco_folder import write_folder  # noqa: E402
from tiny_glip import save_tiny_glip  # noqa: E402

SENTENCES = {
    "1": "[/EN#7/people A cat] and [/EN#8/animals red boats] in [/EN#7/people a house] .\nit .\n",
    "2": "[/EN#3/other a tree] [/EN#0/notvisual it] .\n",
}
BOXES = {"1": {"7": [(5, 5, 30, 40)], "8": [(20, 20, 55, 50), (0, 0, 9, 9)]}, "2": {"3": [(0, 0, 60, 50)]}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "flickr30k"
    for name in ("flickr30k_images", "Annotations", "Sentences"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, entities in BOXES.items():
        pixels = random.integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "flickr30k_images" / f"{number}.jpg")
        corners = ("xmin", "ymin", "xmax", "ymax")
        objects = "".join(
            f"<object><name>{entity}</name><bndbox>{''.join(f'<{c}>{v}</{c}>' for c, v in zip(corners, box))}"
            "</bndbox></object>"
            for entity, boxes in entities.items()
            for box in boxes
        )
        size = "<size><width>60</width><height>50</height></size>"
        (folder / "Annotations" / f"{number}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        (folder / "Sentences" / f"{number}.txt").write_text(SENTENCES[number])
    for split in ("train", "test"):
        (folder / f"{split}.txt").write_text("1\n2\n")
    return folder.parent


@pytest.fixture(scope="module")
def glip_folder(tmp_path_factory):
    return save_tiny_glip(tmp_path_factory.mktemp("glip") / "tiny")


@pytest.fixture(scope="module")
def backbone(glip_folder):
    return load_backbone(str(glip_folder), device="cpu")


@pytest.fixture(scope="module")
def data(root):
    return load_detection("flickr30k_entities", root=root)


def test_every_place_of_a_phrase_counts(data):
    """ "A cat" and "a house" are one entity; recall counts them apart, in the order of the sentence."""
    item = data.test[0]
    assert len(item.phrases) == 2 and len(item) == 3
    apart = by_occurrence(item)
    assert [item.caption[a:b] for ((a, b),) in apart.phrases] == ["A cat", "red boats", "a house"]
    assert apart.labels.tolist() == [0, 1, 1, 2]
    assert apart.boxes.tolist() == [[5, 5, 30, 40], [20, 20, 55, 50], [0, 0, 9, 9], [5, 5, 30, 40]]
    assert by_occurrence(data.test[1]).phrases == () and len(by_occurrence(data.test[1])) == 0


@pytest.mark.parametrize("batch_size", [1, 2])
def test_phrases_are_found_one_sentence_at_a_time(backbone, data, batch_size, tmp_path):
    model = attach(backbone, "sdpt", ["dog"])
    result = evaluate_phrases(model, data, batch_size=batch_size, workers=0, progress=False, out=tmp_path)
    assert [len(item.phrases) for item in result.items] == [3, 1]
    assert (result.metrics.num_phrases, result.metrics.num_sentences, result.resumed) == (4, 2, 0)
    for item, found in zip(result.items, result.predictions, strict=True):
        # by hand: picture, caption, forward pass, boxes
        picture = Image.open(item.path).convert("RGB")
        caption = backbone.processor.grounding_caption(item.caption, item.phrases)
        pixels, sizes = backbone.prepare([picture])
        with torch.no_grad():
            output = model.eval()(pixels, captions=[caption], image_sizes=sizes)["output"]
        (expected,) = backbone.detections(output, [caption], sizes, torch.tensor([[50, 60]]))
        assert len(found.scores) == len(expected["scores"]) > 0
        assert np.allclose(found.boxes, expected["boxes"].numpy(), atol=1e-2)
        assert np.allclose(found.scores, expected["scores"].numpy(), atol=1e-5)
        assert set(found.labels.tolist()) <= set(range(len(item.phrases)))
    assert result.metrics == PhraseRecall.measure(result.items, result.predictions)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["recall_10"] == result.metrics.recall_10 and saved["num_phrases"] == 4
    assert "4 phrases of 2 sentences" in str(result)
    again = evaluate_phrases(model, data, batch_size=batch_size, workers=0, progress=False, out=tmp_path)
    assert again.resumed == 2 and again.metrics == result.metrics


def test_what_does_not_fit_is_told(backbone, data, tmp_path):
    model = attach(backbone, "sdpt", ["dog"])
    with pytest.raises(ConfigError, match="phrases instead of classes; measure their recall with evaluate_phrases"):
        evaluate_detector(model, data, workers=0)
    with pytest.raises(DataError, match="no val sentence whose phrases have boxes; it has 3 train, 3 test"):
        evaluate_phrases(model, data, "val")
    with pytest.raises(ConfigError, match="has classes instead of phrases"):
        evaluate_phrases(model, load_detection(write_folder(tmp_path / "coco")))
    with pytest.raises(ClassNamesError, match="this text prompt reads 'dog', got 'A cat"):
        evaluate_phrases(attach(backbone, "text_prompt", ["dog"]), data, workers=0, progress=False)


def test_sentences_train_and_the_command_line_measures(backbone, glip_folder, root, data, tmp_path, capsys):
    model = attach(backbone, "sdpt", ["object"])
    args = DetectionTrainingArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=1, disable_tqdm=True, dataloader_num_workers=0, views=1
    )
    trainer = PromptTrainer(model, args, data=data)
    trainer.train()
    assert all(np.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)
    artifact = trainer.save_artifact(tmp_path / "artifact")
    expected = evaluate_phrases(model, data, workers=0, progress=False).metrics
    where = ["--data", "flickr30k_entities", "--root", str(root), "--workers", "0"]
    assert main(["evaluate", str(artifact), *where, "--backbone", str(glip_folder)]) == 0
    line = capsys.readouterr().out
    assert f"sdpt on flickr30k_entities: recall@1 {expected.recall_1:.2f}, @5 {expected.recall_5:.2f}" in line
    assert "of 4 phrases in 2 sentences" in line
    assert main(["evaluate", "--method", "zero_shot", "--backbone", str(glip_folder), *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_sentences"] == 2
