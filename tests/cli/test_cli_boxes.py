"""Every command on a detector: train, resume, evaluate, go on, predict, show, list, import, convert."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from coco_folder import write_folder  # noqa: E402
from tiny_glip import save_tiny_glip  # noqa: E402

from duotune.cli import main  # noqa: E402
from duotune.data.detection import DETECTION_DATASETS, EMBEDDED_DETECTION_TASKS  # noqa: E402


@pytest.fixture(scope="session")
def glip(tmp_path_factory) -> Path:
    return save_tiny_glip(tmp_path_factory.mktemp("glip") / "tiny-glip-for-boxes")


@pytest.fixture(scope="session")
def boxes(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("coco") / "things")


@pytest.fixture(scope="session")
def short(glip, boxes) -> list[str]:
    """Options of a short run; --out is still to be given."""
    options = {"--backbone": glip, "--data": boxes, "--epochs": 2, "--batch-size": 3, "--method": "sdpt"}
    training = ["short_sides=[32, 48]", "dataloader_num_workers=0"]
    words = [str(word) for pair in options.items() for word in pair]
    return words + [word for value in training for word in ("--training", value)]


@pytest.fixture(scope="session")
def run(short, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "boxes"
    assert main(["train", *short, "--views", "1", "--set", "lr=0.05", "--out", str(out), "--report"]) == 0
    return out


def test_a_run_leaves_artifact_metrics_recipe_and_report(run):
    metrics = json.loads((run / "metrics.json").read_text())["detection"]["sdpt"]
    assert set(metrics) == {"AP", "AP50", "trainable_parameters", "artifact_bytes", "seconds"}
    assert metrics["trainable_parameters"] == 10 * 64 * 3 and 0 <= metrics["AP"] <= metrics["AP50"] <= 100
    assert json.loads((run / "prompt.json").read_text())["method"] == "sdpt"
    assert "kind" not in (run / "recipe.yaml").read_text() and "shots: 0" in (run / "recipe.yaml").read_text()
    page = (run / "report.html").read_text()
    assert "AP50 (%)" in page and page.count("data:image/png") == 2 * 4 and "accuracy (%)" not in page


def test_the_table_names_what_was_measured_and_faulty_boxes_are_told(duotune, short, boxes, tmp_path):
    copy = tmp_path / "faulty"
    import shutil

    shutil.copytree(boxes, copy)
    content = json.loads((copy / "train.json").read_text())
    content["annotations"][0]["bbox"] = [5, 5, -3, 4]
    (copy / "train.json").write_text(json.dumps(content))
    argv = [str(copy) if word == str(boxes) else word for word in short]
    ran = duotune("train", *argv, "--shots", 1, "--out", tmp_path / "run", "--seed", 3)
    assert ran.status == 0, ran.err
    assert "data: 1 boxes had no width or no height, or were inverted, and were dropped" in ran.out
    assert "AP (%)" in ran.out and "AP50 (%)" in ran.out and "accuracy" not in ran.out
    shots = int(ran.out.split(" training, ")[0].rpartition(" ")[2])
    assert 0 < shots < 6


def test_a_run_that_was_stopped_goes_on(duotune, short, tmp_path, monkeypatch):
    from duotune.training.detection import DetectionTrainer

    original, calls = DetectionTrainer.training_step, []

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    whole = duotune("train", *short, "--out", tmp_path / "whole")
    assert whole.status == 0, whole.err
    monkeypatch.setattr(DetectionTrainer, "training_step", stop)
    ran = duotune("train", *short, "--out", tmp_path / "parts")
    assert ran.status == 130 and "--resume" in ran.err
    monkeypatch.undo()
    assert duotune("train", "--resume", "--out", tmp_path / "parts").status == 0
    name = "prompt.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_evaluate_keeps_boxes_and_goes_on(duotune, run, boxes, tmp_path, monkeypatch):
    out, more = tmp_path / "found", ["--workers", 0, "--score-threshold", 0.01]
    plain = duotune("evaluate", run, "--data", boxes, *more)
    assert plain.status == 0 and plain.out.startswith("sdpt on things: AP "), plain.err
    ran = duotune("evaluate", run, "--data", boxes, "--out", out, *more, "--per-class")
    assert ran.status == 0 and ran.out.splitlines()[0].split() == ["class", "boxes", "AP", "AP50"]
    lines = (out / "detections.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 4
    (out / "detections.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # stopped while it wrote
    again = duotune("evaluate", run, "--data", boxes, "--out", out, *more)
    assert "(2 of them found before)" in again.out
    assert again.out.replace(" (2 of them found before)", "") == plain.out
    assert sorted((out / "detections.jsonl").read_text().splitlines()) == sorted(lines)
    whole = json.loads((out / "metrics.json").read_text())
    assert whole["num_images"] == 4 and whole["class_names"] == ["cat", "dog"]
    other = duotune("evaluate", run, "--data", boxes, "--out", out, "--workers", 0, "--score-threshold", 0.02)
    assert "holds boxes found with another limits" in other.error
    as_json = json.loads(duotune("evaluate", run, "--data", boxes, "--json", *more).out)
    assert as_json["ap50"] == pytest.approx(whole["ap50"])


def test_evaluate_zero_shot_and_other_classes(duotune, run, glip, boxes, tmp_path):
    ran = duotune("evaluate", "--method", "zero_shot", "--backbone", glip, "--data", boxes, "--workers", 0)
    assert ran.status == 0 and ran.out.startswith("zero_shot on things: AP ")
    other = write_folder(tmp_path / "others", names=("tree", "boat"))
    assert duotune("evaluate", run, "--data", other, "--workers", 0, "--split", "val").status == 0
    turned = write_folder(tmp_path / "turned")
    for split in ("train", "val", "test"):
        content = json.loads((turned / f"{split}.json").read_text())
        for row in content["categories"]:
            row["id"] = 3 - row["id"]
        for row in content["annotations"]:
            row["category_id"] = 3 - row["category_id"]
        (turned / f"{split}.json").write_text(json.dumps(content))
    here, there = (
        json.loads(duotune("evaluate", run, "--data", data, "--workers", 0, "--json").out) for data in (boxes, turned)
    )
    assert here["class_names"] == there["class_names"] == ["cat", "dog"]
    assert here["per_class"] == there["per_class"] and here["counts"] == there["counts"]


def test_odinw_is_averaged(duotune, glip, tmp_path, monkeypatch):
    import duotune.data.detection as detection

    tasks = {}
    for number, name in enumerate(("one", "two")):
        tasks[name] = write_folder(tmp_path / name, splits={"train": 1, "val": 1, "test": 2}, seed=number)
    monkeypatch.setitem(detection.ODINW, "odinw_13", tuple(map(str, tasks.values())))
    argv = ["evaluate", "--method", "zero_shot", "--backbone", glip, "--data", "odinw_13", "--workers", 0]
    ran = duotune(*argv, "--out", tmp_path / "out", "--score-threshold", 0.01)
    assert ran.status == 0, ran.err
    rows = {line.split()[0]: line.split()[-1] for line in ran.out.splitlines() if line}
    assert float(rows["mean"]) == pytest.approx((float(rows["one"]) + float(rows["two"])) / 2, abs=0.011)
    whole = json.loads((tmp_path / "out" / "odinw.json").read_text())
    assert set(whole["tasks"]) == {"one", "two"} and (tmp_path / "out" / "one" / "detections.jsonl").is_file()


def test_predict_prints_draws_and_writes_boxes(duotune, run, boxes, tmp_path):
    pictures, out = boxes / "test", tmp_path / "found"
    ran = duotune("predict", run, pictures / "0.png", pictures, "--out", out, "--score-threshold", 0.05)
    assert ran.status == 0, ran.err
    assert ran.out.splitlines()[0].split() == ["image", "class", "score", "x1", "y1", "x2", "y2"]
    found = json.loads((out / "detections.json").read_text())
    assert f"wrote {out}: 5 images, boxes drawn in 5, and detections.json" in ran.out
    assert len(found) == 5 and found[0]["boxes"] == found[1]["boxes"]
    drawn = sorted(path.name for path in out.iterdir() if path.suffix == ".png")
    assert drawn == ["0-2.png", "0.png", "1.png", "2.png", "3.png"]
    changed = 0
    for row, name in zip(found, ["0.png", "0-2.png", "1.png", "2.png", "3.png"], strict=True):
        before, after = Image.open(row["source"]), Image.open(out / name)
        assert before.size == after.size == (row["width"], row["height"])
        changed += (before.convert("RGB").tobytes() != after.tobytes()) == bool(row["boxes"])
        assert all(0 <= x1 <= x2 <= row["width"] and 0 <= y1 <= y2 <= row["height"] for x1, y1, x2, y2 in row["boxes"])
        assert row["scores"] == sorted(row["scores"], reverse=True) and all(s >= 0.05 for s in row["scores"])
    assert changed == 5
    rows = json.loads(duotune("predict", run, pictures, "--json", "--score-threshold", 0.05).out)
    assert [row["boxes"] for row in rows] == [row["boxes"] for row in found[1:]]
    nothing = duotune("predict", run, pictures, "--score-threshold", 1)
    assert nothing.out.strip() == "nothing found in 4 of 4 images (--score-threshold 1.0)"


def test_predict_in_the_formats_of_other_tools(duotune, run, boxes, tmp_path, left_behind):
    pictures, options = boxes / "test", ["--score-threshold", 0.05]
    rows = json.loads(duotune("predict", run, pictures, "--json", *options).out)
    printed = json.loads(duotune("predict", run, pictures, "--format", "coco", *options).out)
    ran = duotune("predict", run, pictures, "--format", "coco", "--out", tmp_path / "coco", *options)
    assert ran.status == 0 and "coco.json" in ran.out and left_behind(tmp_path / "coco") == ["coco.json"], ran.err
    assert json.loads((tmp_path / "coco" / "coco.json").read_text()) == printed
    assert [i["file_name"] for i in printed["images"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert len(printed["annotations"]) == sum(len(row["boxes"]) for row in rows) > 0
    assert {c["id"]: c["name"] for c in printed["categories"]} == {1: "cat", 2: "dog"}
    ran = duotune("predict", run, pictures, "--format", "yolo", "--out", tmp_path / "yolo", *options)
    assert ran.status == 0 and "4 label files and classes.txt" in ran.out, ran.err
    assert left_behind(tmp_path / "yolo") == ["0.txt", "1.txt", "2.txt", "3.txt", "classes.txt"]
    assert (tmp_path / "yolo" / "classes.txt").read_text() == "cat\ndog\n"
    for number, row in enumerate(rows):
        lines = (tmp_path / "yolo" / f"{number}.txt").read_text().splitlines()
        assert len(lines) == len(row["boxes"])
        sides = row["width"], row["height"]
        for line, box, score, label in zip(lines, row["boxes"], row["scores"], row["labels"]):
            words = [float(word) for word in line.split()]
            (cx, w), (cy, h) = ((words[i] * side, words[i + 2] * side) for i, side in enumerate(sides, start=1))
            # six decimals of a share
            assert [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] == pytest.approx(box, abs=1e-3)
            assert words[0] == label and words[5] == pytest.approx(score, abs=1e-6)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.png").write_bytes(b"no picture")
    Image.open(pictures / "0.png").save(tmp_path / "some" / "b.png")
    ran = duotune("predict", run, tmp_path / "some", "--format", "yolo", "--out", tmp_path / "part")
    assert ran.status == 2 and "a.png" in ran.err and left_behind(tmp_path / "part") == ["b.txt", "classes.txt"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--format", "yolo"], "name their folder with --out"),
        (["--format", "coco", "--json"], "--json and --format are alternatives"),
        (["--format", "voc"], "invalid choice: 'voc'"),
    ],
)
def test_formats_that_do_not_fit(duotune, run, boxes, argv, says):
    assert says in duotune("predict", run, boxes / "test", *argv).error


def test_drawn_pictures_never_replace_what_is_read(duotune, run, boxes):
    pictures = boxes / "test"
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    for read in (pictures, pictures / "0.png"):
        refused = duotune("predict", run, read, "--out", pictures)
        assert refused.status == 2 and "name another folder" in refused.error
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "name", "theirs"),
    [
        ([], "0.png", "a picture of theirs"),
        (["--format", "coco"], "coco.json", '{"annotations": [{"id": 1, "bbox": [0, 0, 1, 1]}]}'),
        (["--format", "coco"], "coco.json", "no JSON"),
        (["--format", "yolo"], "classes.txt", "zebra\n"),
        (["--format", "yolo"], "2.txt", "0 0.5 0.5 0.5 0.5\n"),
    ],
)
def test_results_never_replace_what_others_wrote(duotune, run, boxes, tmp_path, left_behind, options, name, theirs):
    (tmp_path / name).write_text(theirs)
    refused = duotune("predict", run, boxes / "test", "--out", tmp_path, *options)
    assert refused.status == 2 and name in refused.error and "which no earlier predict wrote" in refused.error
    assert (tmp_path / name).read_text() == theirs and left_behind(tmp_path) == [name]
    for _ in range(2):  # its own it replaces
        again = duotune("predict", run, boxes / "test", "--out", tmp_path / "new", "--score-threshold", 0.05, *options)
        assert again.status == 0, again.err


def test_found_boxes_of_a_file_whose_name_is_no_text(duotune, run, boxes, tmp_path):
    source = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    shutil.copy(boxes / "test" / "0.png", source)
    ran = duotune("predict", run, source, "--format", "coco", "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["images"][0]["file_name"] == "caf\udce9.png"


def test_broken_pictures_are_told_last(duotune, run, boxes, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    Image.open(boxes / "test" / "0.png").save(folder / "b.png")
    ran = duotune("predict", run, folder, "--out", tmp_path / "out")
    assert ran.status == 2 and "a.png" in ran.error and "other 1 images" in ran.error
    assert (tmp_path / "out" / "b.png").is_file() and not (tmp_path / "out" / "a.png").exists()


def test_boxes_in_an_archive_and_beside_a_broken_picture(duotune, run, boxes, tmp_path):
    with zipfile.ZipFile(tmp_path / "pics.zip", "w") as archive:
        archive.write(boxes / "test" / "0.png", "0.png")
        archive.write(boxes / "test" / "1.png", "deep/0.png")
    (tmp_path / "torn.png").write_bytes(b"no picture")
    ran = duotune("predict", run, tmp_path / "torn.png", tmp_path / "pics.zip", "--out", tmp_path / "out", "--json")
    assert ran.status == 2 and "1 of 3 images cannot be read" in ran.error and "torn.png" in ran.error
    told = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert told == json.loads(ran.out) and [row["error"] is None for row in told] == [False, True, True]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0-2.png", "0.png"]


def test_show_and_list(duotune, run):
    shown = duotune("show", run)
    assert shown.status == 0 and "sdpt" in shown.out and "cat, dog" in shown.out and "prototypes" in shown.out
    rows = [line.split(maxsplit=2) for line in duotune("list", "datasets").out.splitlines()]
    kinds = {row[0]: row[1] for row in rows}
    assert {kinds[name] for name in (*DETECTION_DATASETS, *EMBEDDED_DETECTION_TASKS)} == {"boxes"}
    assert kinds["oxford_pets"] == "labels" and kinds["odinw_13"] == "boxes"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--top-k", "2"], "--top-k is of classifiers"),
        (["--score-threshold", "2"], "score_threshold must be a number in 0..1"),
    ],
)
def test_options_of_predict_that_do_not_fit(duotune, run, boxes, argv, says):
    assert says in duotune("predict", run, boxes / "test", *argv).error


def test_one_file_of_all_pictures_is_divided_for_training(duotune, glip, tmp_path):
    """The run is tested on what it left out; evaluating the artifact on the same file measures just that."""
    root = write_folder(tmp_path / "project", splits={"train": 30})
    (root / "train.json").rename(root / "result.json")
    (root / "train").rename(root / "images")
    argv = ["--method", "sdpt", "--backbone", glip, "--data", root, "--epochs", 1, "--batch-size", 10, "--seed", 2]
    more = ["--training", "short_sides=[32]", "--training", "dataloader_num_workers=0"]
    ran = duotune("train", *argv, *more, "--out", tmp_path / "run")
    assert ran.status == 0, ran.err
    line = next(line for line in ran.out.splitlines() if "brings no splits" in line)
    assert line.startswith("data: project brings no splits: its pictures were divided by their names (seed 0): ")
    count = int(line.rpartition(", ")[2].split()[0])
    assert 0 < count < 20 and "test" in line.rpartition(", ")[2]
    measured = duotune("evaluate", tmp_path / "run", "--data", root, "--workers", 0, "--json")
    assert json.loads(measured.out)["num_images"] == count and "divided by their names (seed 0)" in measured.err
    whole = duotune("evaluate", "--method", "zero_shot", "--backbone", glip, "--data", root, "--workers", 0, "--json")
    assert json.loads(whole.out)["num_images"] == 30 and "all of its 30 pictures are the test split" in whole.err


def test_pictures_of_several_sizes_in_a_batch_are_told(duotune, run, boxes, tmp_path, capfd):
    argv = ["evaluate", run, "--data", boxes, "--workers", 0]
    told = duotune(*argv, "--batch-size", 4)
    assert told.status == 0 and "note: batches of 4 hold pictures of several sizes, which are padded" in told.err
    assert "padding" not in duotune(*argv).err
    same = write_folder(tmp_path / "same", sizes=((64, 64),), splits={"test": 4})
    assert "padding" not in duotune("evaluate", run, "--data", same, "--workers", 0, "--batch-size", 4).err
    with pytest.raises(SystemExit):
        duotune("evaluate", "--help")
    assert "padding" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--ensemble", "--method", "zero_shot"], "--ensemble is of classifiers"),
        (["--classes", "base"], "leave out --classes base"),
        (["--score-threshold", "7"], "--score-threshold must be in 0..1"),
        (["--max-detections", "0"], "--max-detections must be at least 1"),
    ],
)
def test_options_of_evaluate_that_do_not_fit(duotune, run, glip, boxes, argv, says):
    what = ["--backbone", glip] if "--method" in argv else [run]
    assert says in duotune("evaluate", *what, "--data", boxes, *argv).error


def test_what_belongs_to_the_other_kind_is_told(duotune, run, glip, boxes, picture_folder, tiny_clip_folder, tmp_path):
    out = tmp_path / "out"
    assert "give it COCO annotations" in duotune("evaluate", run, "--data", picture_folder).error
    zero = ["evaluate", "--method", "zero_shot", "--data", boxes, "--backbone", tiny_clip_folder]
    assert "is no detector" in duotune(*zero).error
    wrong = duotune("train", "--method", "sdpt", "--backbone", tiny_clip_folder, "--data", boxes, "--out", out)
    assert "sdpt needs" in wrong.error and not out.exists()
    wrong = duotune("train", "--method", "vpt", "--backbone", tiny_clip_folder, "--data", boxes, "--out", out)
    assert "does not fit" in wrong.error and not (out / "prompt.json").exists()
    wrong = duotune("train", "--method", "vpt", "--backbone", glip, "--data", picture_folder, "--out", out)
    assert wrong.status == 2 and not (out / "prompt.json").exists()
    wrong = duotune("train", "--method", "sdpt", "--backbone", glip, "--data", picture_folder, "--out", out)
    assert "sdpt is no method of a classifier" in wrong.error


# ------------------------------------------------------------------ files of others


@pytest.fixture
def official(glip, tmp_path) -> Path:
    """The tiny GLIP as an official checkpoint, with SDPT's tokens in it."""
    from duotune.models.glip import GlipForObjectDetection
    from duotune.models.glip.conversion import official_name

    model = GlipForObjectDetection.from_pretrained(glip)
    state = {f"module.{official_name(name)}": value for name, value in model.state_dict().items()}
    for layer in range(3):
        prefix = f"module.rpn.head.dyhead_tower.{3 * layer}.b_attn.attn"
        state |= {f"{prefix}.cpt_input": torch.rand(1, 4, 64), f"{prefix}.cpt_maskpad": torch.zeros(1, 4)}
    torch.save({"model": state}, tmp_path / "model_final.pth")
    return tmp_path / "model_final.pth"


def test_sdpts_checkpoint_becomes_an_artifact(duotune, official, glip, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    what = ["--backbone", glip, "--classes", tmp_path / "names.txt"]
    for words, out in ((["sdpt", official], "a"), ([official], "b")):
        ran = duotune("import", *words, *what, "--out", tmp_path / out)
        assert ran.status == 0 and "sdpt, 2 classes" in ran.out, ran.err
    assert (tmp_path / "a/prompt.safetensors").read_bytes() == (tmp_path / "b/prompt.safetensors").read_bytes()
    info = json.loads((tmp_path / "a/prompt.json").read_text())
    assert info["config"]["visible"] == "text_queries" and info["config"]["num_prototype_tokens"] == 4
    for words, says in (
        (["clip", official], "expected a path, or one of dassl, sdpt"),
        (["sdpt", official, "--position", "end"], "--position is of dassl"),
        (["sdpt", official, "--set", "visible=both"], "visible is 'text_queries' in"),
        (["sdpt", official, "--set", "device=cpu"], "--set device: this is no setting that the files leave open"),
        (["dassl", tmp_path, "--no-check-backbone"], "--no-check-backbone is of sdpt"),
    ):
        assert says in duotune("import", *words, *what, "--out", tmp_path / "c").error
    content = torch.load(official)
    content["model"]["module.rpn.head.bbox_pred.weight"] += 1
    torch.save(content, tmp_path / "trained.pth")
    wrong = duotune("import", "sdpt", tmp_path / "trained.pth", *what, "--out", tmp_path / "d")
    assert "not those of" in wrong.error and not (tmp_path / "d").exists()
    ran = duotune("import", "sdpt", tmp_path / "trained.pth", *what, "--out", tmp_path / "d", "--no-check-backbone")
    assert ran.status == 0


def test_glips_checkpoint_becomes_a_folder(duotune, official, glip, tmp_path, monkeypatch):
    from duotune.models.glip import GlipConfig, GlipForObjectDetection, conversion

    config = GlipConfig.from_pretrained(glip)
    monkeypatch.setattr(conversion, "guess_config", lambda state: config)  # it tells GLIP-T and GLIP-L apart
    ran = duotune("convert", "glip", official, tmp_path / "folder", "--tokenizer", glip)
    assert ran.status == 0, ran.err
    assert "skipped 6 entries that SDPT's code learnt" in ran.out and "use it as --backbone" in ran.out
    ours, theirs = (GlipForObjectDetection.from_pretrained(path) for path in (tmp_path / "folder", glip))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    content = torch.load(official)
    del content["model"]["module.rpn.head.bbox_pred.weight"]
    content["model"]["module.rpn.head.dyhead_tower.99.b_attn.attn.v_proj.weight"] = torch.zeros(2)
    torch.save(content, official)
    wrong = duotune("convert", "glip", official, tmp_path / "other", "--tokenizer", glip).error
    assert "1 missing (rpn.head.bbox_pred.weight)" in wrong and "1 unexpected (rpn.head.dyhead_tower.99" in wrong
    assert not (tmp_path / "other").exists()
    assert "--bpe is of openai-clip" in duotune("convert", "glip", official, tmp_path / "x", "--bpe", "y").error


def test_checkpoints_are_read_without_running_code(duotune, glip, tmp_path):
    import os

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"model": {"a": Harm()}}, tmp_path / "bad.pth")
    (tmp_path / "names.txt").write_text("cat\n")
    wrong = duotune("convert", "glip", tmp_path / "bad.pth", tmp_path / "out", "--tokenizer", glip)
    assert wrong.status == 2 and not (tmp_path / "harm").exists()
    what = ["--backbone", glip, "--classes", tmp_path / "names.txt", "--out", tmp_path / "out"]
    assert duotune("import", tmp_path / "bad.pth", *what).status == 2 and not (tmp_path / "harm").exists()


def faulty_copy(boxes, folder, change):
    """A copy of the folder `boxes` with train.json and test.json changed by change(content, split)."""
    import shutil

    shutil.copytree(boxes, folder)
    for split in ("train", "test"):
        content = json.loads((folder / f"{split}.json").read_text())
        change(content, split)
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_evaluate_tells_faulty_boxes(duotune, run, boxes, tmp_path):
    def spoil(content, split):
        if split == "test":
            content["annotations"][0]["bbox"] = [5, 5, float("nan"), 4]
            content["annotations"][1]["bbox"] = [5, float("inf"), 3, 4]

    data = faulty_copy(boxes, tmp_path / "faulty", spoil)
    ran = duotune("evaluate", run, "--data", data, "--workers", 0, "--json")
    assert ran.status == 0 and json.loads(ran.out)["num_images"] == 4
    told = [line for line in ran.err.splitlines() if line.startswith("data: ")]
    assert len(told) == 1 and told[0].startswith(
        "data: 2 boxes held NaN or infinity and were dropped (test.json: image"
    )


def test_a_detector_does_not_measure_labelled_images(duotune):
    argv = ["evaluate", "--method", "zero_shot", "--backbone", "tiny-glip", "--data", "tiny-animals"]
    line = duotune(*argv, "--workers", 0).error
    assert "is a detector" in line and "give it COCO annotations" in line and "unexpected" not in line


def test_training_without_any_box_is_refused(duotune, short, boxes, tmp_path, left_behind):
    def strip(content, split):
        content["annotations"] = [] if split == "train" else content["annotations"]

    data = faulty_copy(boxes, tmp_path / "boxless", strip)
    argv = [str(data) if word == str(boxes) else word for word in short]
    line = duotune("train", *argv, "--out", tmp_path / "run").error
    assert "boxless: no box in any of its 6 training pictures" in line
    assert left_behind(tmp_path / "run") == []


def test_broken_test_pictures_stop_a_run_before_it_trains(duotune, short, boxes, tmp_path, left_behind):
    data = faulty_copy(boxes, tmp_path / "broken", lambda content, split: None)
    (data / "test" / "2.png").write_bytes(b"no picture")
    argv = [str(data) if word == str(boxes) else word for word in short]
    line = duotune("train", *argv, "--out", tmp_path / "run").error
    assert "1 of 4 images cannot be read" in line and "2.png" in line
    assert left_behind(tmp_path / "run") == []
    ran = duotune("train", *argv, "--training", "max_broken_share=0.25", "--out", tmp_path / "run")
    assert ran.status == 0, ran.err
    assert [line for line in ran.out.splitlines() if line.startswith("skipped: ") and "2.png" in line]
