"""The named detection data sets, on folders made in their real layouts, and ODinW's yaml."""

from __future__ import annotations

import json
import pkgutil

import pytest
import yaml

from duotune.data.detection import DETECTION_DATASETS, ODINW_13, ODINW_35, datasets, load_detection
from duotune.data.detection.base import DetectionData
from duotune.data.detection.flickr30k import parse_sentence
from duotune.errors import ConfigError, DataError
from duotune.grounding import CaptionPrompt

IMAGES = [(1, "a.jpg", 40, 30), (2, "b.jpg", 20, 20)]


def test_table_and_files_are_in_bijection():
    """Every entry leads to its own object in a file of `datasets/`; every such object and file is in the table."""
    import importlib

    listed = {}
    for name in DETECTION_DATASETS:
        module, _, attribute = DETECTION_DATASETS.where(name).partition(":")
        assert module.startswith("duotune.data.detection.datasets.")
        assert listed.setdefault((module, attribute), name) == name
        assert DETECTION_DATASETS.get(name).name == name and DETECTION_DATASETS.get(name).title
    modules = [f"{datasets.__name__}.{m.name}" for m in pkgutil.iter_modules(datasets.__path__)]
    assert {module for module, _ in listed} == set(modules) and len(modules) == 4
    found = set()
    for module in modules:
        content = vars(importlib.import_module(module))
        found |= {(module, key) for key, value in content.items() if hasattr(value, "load") and key.isupper()}
    assert found == set(listed)


def test_odinw_lists():
    """github.com/microsoft/GLIP, configs/odinw_13 and configs/odinw_35/_all.json: their numbers and some contents."""
    assert len(ODINW_35) == 35 and len(ODINW_13) == 13 and set(ODINW_13) <= set(ODINW_35)
    tasks = {name: DETECTION_DATASETS.get(name) for name in ODINW_35}
    assert {name for name, task in tasks.items() if task.in_13} == set(ODINW_13)
    assert len({task.folder for task in tasks.values()}) == 35
    assert tasks["odinw_pothole"].prompts == (CaptionPrompt("holes", "there are some ", " on the road"),)
    assert sum(bool(task.prompts) for task in tasks.values()) == 4
    assert tasks["odinw_cottontail_rabbits"].class_names == ("rabbit",)
    assert tasks["odinw_cottontail_rabbits"].names_13 == ("Cottontail-Rabbit",)
    assert len(tasks["odinw_oxford_pets_by_breed"].class_names) == 37 and tasks["odinw_oxford_pets_by_breed"].minival
    assert {name for name, task in tasks.items() if task.export} == {
        "odinw_pistols", "odinw_dice", "odinw_boggle_boards", "odinw_selfdriving_car"}  # fmt: skip
    for task in tasks.values():
        assert len(set(task.class_names)) == len(task.class_names) and all(n.strip() for n in task.class_names)
        assert not task.prompts or len(task.prompts) == len(task.class_names)


@pytest.mark.parametrize("name", ODINW_35)
def test_odinw_layout(name, tmp_path, write_coco):
    task = DETECTION_DATASETS.get(name)
    folder = tmp_path / "odinw" / task.folder
    categories = {number: f"class {number}" for number in range(1, len(task.class_names) + 1)}
    validation = "minival" if task.minival else "val"
    for word, part in {
        "train": "train",
        validation: {"val": "valid", "minival": "mini_val"}[validation],
        "test": "test",
    }.items():
        pictures = folder if task.export else folder / part
        for prefix, boxes in {"annotations_without_background": 1, "fewshot_{}_shot3_seed30": 0}.items():
            file = prefix.format(word) if "{}" in prefix else (f"{word}_{prefix}" if task.export else prefix)
            rows = [(1, 1, 1, [0, 0, 9, 9]), (2, 2, len(categories), [0, 0, 9, 9])]
            write_coco(pictures / f"{file}.json", pictures, IMAGES, rows[: boxes + 1], categories)
    for root in (tmp_path, tmp_path / "odinw"):
        data = load_detection(name, root=root)
        assert isinstance(data, DetectionData) and data.name == name
        assert data.class_names == task.class_names and data.caption_prompts == task.prompts
        assert [sum(map(len, part)) for part in (data.train, data.val, data.test)] == [2, 2, 2]
    few = load_detection(name, root=tmp_path, shots=(3, 30))
    assert [sum(map(len, part)) for part in (few.train, few.val, few.test)] == [1, 1, 2]
    with pytest.raises(DataError, match="shot1_seed3.json"):
        load_detection(name, root=tmp_path, shots=(1, 3))
    if task.in_13:
        small = load_detection(name, root=tmp_path, variant=13)
        assert small.class_names == (task.names_13 or task.class_names) and small.caption_prompts == ()
    else:
        with pytest.raises(ConfigError, match="variant must be 35, not 13"):
            load_detection(name, root=tmp_path, variant=13)


def test_odinw_without_files(tmp_path):
    with pytest.raises(DataError, match="needs root"):
        load_detection("odinw_pothole")
    with pytest.raises(DataError, match="no such folder: .*odinw/pothole"):
        load_detection("odinw_pothole", root=tmp_path)


@pytest.fixture
def task_yaml(tmp_path, write_coco):
    """A task in the published form: texts that are yaml but no JSON, a blank name, minival."""
    register = {}
    for word, part in {
        "train": "train",
        "val": "valid",
        "minival": "mini_val",
        "test": "test",
        "train_1_3": "train",
    }.items():
        file = "fewshot_train_shot1_seed3.json" if word == "train_1_3" else "annotations_without_background.json"
        folder = f"odinw/chess/{part}"
        rows = [(1, 1, 1, [0, 0, 9, 9]), (2, 2, 2, [0, 0, 9, 9])][: 1 if word == "train_1_3" else 2]
        write_coco(tmp_path / folder / file, tmp_path / folder, IMAGES, rows, {1: "bishop", 2: "x"})
        register[word] = {"ann_file": f"{folder}/{file}", "img_dir": folder}
    settings = {
        "REGISTER": register,
        "TEST": '("minival",)',
        "TRAIN": '("train",)',
        "OVERRIDE_CATEGORY": '[{"id": 1, "name": "  ", "supercategory": "c"}, {"id": 2, "name": "rook"},]',
        "CAPTION_PROMPT": '[{"prefix": " ", "name": "bishop", "suffix": " of chess"}, {"prefix": "", "name": "rook", '
        '"suffix": ""},]',
    }
    path = tmp_path / "configs" / "ChessPieces.yaml"

    def write(**changes):
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"DATASETS": {**settings, **changes}}))
        return path

    return write


def test_odinw_yaml(task_yaml, tmp_path):
    data = load_detection(task_yaml(), root=tmp_path)
    assert data.name == "ChessPieces" and data.class_names == ("bishop", "rook")  # a blank keeps the file's name
    assert data.caption_prompts == (CaptionPrompt("bishop", " ", " of chess"), CaptionPrompt("rook"))
    assert data.val[0].path.parent.name == "mini_val" and data.test[0].path.parent.name == "test"
    assert load_detection(task_yaml(), root=tmp_path / "odinw").class_names == data.class_names
    assert load_detection(task_yaml(TEST='("val",)'), root=tmp_path).val[0].path.parent.name == "valid"
    plain = load_detection(task_yaml(OVERRIDE_CATEGORY="", CAPTION_PROMPT=None), root=tmp_path, name="mine")
    assert (plain.name, plain.class_names, plain.caption_prompts) == ("mine", ("bishop", "x"), ())


def test_odinw_yaml_shots(task_yaml, tmp_path):
    path = task_yaml(TEST='("train",)')  # so that both splits have the list
    data = load_detection(path, root=tmp_path, shots=(1, 3))
    assert sum(map(len, data.train)) == 1 and sum(map(len, data.test)) == 2
    with pytest.raises(ConfigError, match=r"no few-shot list 'train_5_3'; number_seed must be one of \['1_3'\]"):
        load_detection(path, root=tmp_path, shots=(5, 3))
    with pytest.raises(ConfigError, match="shots must be"):
        load_detection(path, root=tmp_path, shots=(5,))


@pytest.mark.parametrize(
    "text", ["DATASETS: {}", "[1, 2]", "DATASETS: {REGISTER: {train: x}}", "a: [", "!!python/name:os.x a"]
)
def test_what_is_no_task(text, tmp_path):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(DataError, match="t.yaml is no ODinW task"):
        load_detection(tmp_path / "t.yaml")


def test_yaml_with_broken_lists(task_yaml, tmp_path):
    with pytest.raises(DataError, match="OVERRIDE_CATEGORY must be a list of objects with id, name"):
        load_detection(task_yaml(OVERRIDE_CATEGORY='[{"id": 1}]'), root=tmp_path)
    with pytest.raises(DataError, match="CAPTION_PROMPT must be a list"):
        load_detection(task_yaml(CAPTION_PROMPT="[{"), root=tmp_path)


def lvis_folder(tmp_path, write_coco, **changes):
    url = "http://images.cocodataset.org"
    images = [
        {"id": 1, "coco_url": f"{url}/train2017/000000000001.jpg", "width": 40, "height": 30,
         "neg_category_ids": [3], "not_exhaustive_category_ids": [1]},
        {"id": 2, "coco_url": f"{url}/val2017/000000000002.jpg", "width": 40, "height": 30,
         "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ]  # fmt: skip
    images[0].update(changes)
    categories = [{"id": i, "name": n, "frequency": f} for i, n, f in ((1, "bow_(weapon)", "r"), (3, "bow_(tie)", "f"))]
    rows = [(1, 1, 1, [0, 0, 5, 5]), (2, 2, 3, [0, 0, 6, 5])]
    root = tmp_path / "coco"
    write_coco(root / "annotations/lvis_v1_val.json", root, images, rows, categories)
    return root


def test_lvis(tmp_path, write_coco):
    root = lvis_folder(tmp_path, write_coco)
    data = load_detection("lvis_v1", root=tmp_path)
    assert data.class_names == ("bow_(weapon)", "bow_(tie)") and data.frequencies == ("r", "f")
    assert [i.path for i in data.val] == [root / "train2017/000000000001.jpg", root / "val2017/000000000002.jpg"]
    assert data.val[0].neg_labels == (1,) and data.val[0].not_exhaustive_labels == (0,) and data.val[1].neg_labels == ()
    for name, text in {"list.json": "[2]", "list.txt": "2\n", "some.json": '{"images": [{"id": 2}]}'}.items():
        (tmp_path / name).write_text(text)
        part = load_detection("lvis_v1", root=tmp_path, minival=tmp_path / name)
        assert [i.image_id for i in part.val] == [2] and part.report.faults == {}
    with pytest.raises(DataError, match="expected MiniVal's annotations or list"):
        load_detection("lvis_minival", root=tmp_path)
    (root / "annotations/lvis_v1_minival.json").write_text("[1]")
    assert [i.image_id for i in load_detection("lvis_minival", root=tmp_path).val] == [1]
    (tmp_path / "list.txt").write_text("2\n5")
    with pytest.raises(DataError, match="names 1 pictures that .* does not list: 5"):
        load_detection("lvis_v1", root=tmp_path, minival=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("two")
    with pytest.raises(DataError, match="is no list of images"):
        load_detection("lvis_v1", root=tmp_path, minival=tmp_path / "list.txt")


def test_minival_annotations_need_no_val(tmp_path, write_coco):
    root = lvis_folder(tmp_path, write_coco)
    (root / "annotations/lvis_v1_val.json").rename(root / "annotations/lvis_v1_minival.json")
    assert len(load_detection("lvis_minival", root=tmp_path).val) == 2
    with pytest.raises(DataError, match="no annotations/lvis_v1_train.json"):
        load_detection("lvis_v1", root=tmp_path)


def test_lvis_faults(tmp_path, write_coco):
    lvis_folder(tmp_path, write_coco, neg_category_ids=[77])
    with pytest.raises(DataError, match="image 1 lists a category that is absent: 77"):
        load_detection("lvis_v1", root=tmp_path)
    path = lvis_folder(tmp_path, write_coco) / "annotations/lvis_v1_val.json"
    content = json.loads(path.read_text())
    del content["categories"][1]["frequency"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="1 categories have no frequency 'r', 'c' or 'f', such as 'bow_"):
        load_detection("lvis_v1", root=tmp_path)


def test_marked_sentences():
    caption, spans = parse_sentence("[/EN#0/notvisual It] is [/EN#7/people/other a  man] with [/EN#8/people a dog] .")
    assert caption == "It is a man with a dog ."
    assert {e: [caption[a:b] for a, b in s] for e, s in spans.items()} == {"0": ["It"], "7": ["a man"], "8": ["a dog"]}
    assert parse_sentence("nothing [marked] here") == ("nothing [marked] here", {})


def flickr_folder(tmp_path, write_image):
    root = tmp_path / "flickr30k"
    write_image(root / "flickr30k_images" / "100.jpg", size=(60, 50))
    boxes = {"7": (5, 5, 30, 40), "8": (20, 20, 70, 50), "9": None, "0": (1, 1, 5, 5)}
    corners = lambda box: "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    inside = lambda box: "<scene>0</scene>" if box is None else f"<bndbox>{corners(box)}</bndbox>"
    boxes = [*boxes.items(), ("8", (0, 0, 9, 9))]
    objects = "".join(f"<object><name>{entity}</name>{inside(box)}</object>" for entity, box in boxes)
    xml = f"<annotation><size><width>60</width><height>50</height></size>{objects}</annotation>"
    for name, text in {
        "Annotations/100.xml": xml,
        "Sentences/100.txt": (
            "[/EN#7/people A man] and [/EN#8/animals dogs] , [/EN#7/people he] is in [/EN#9/scene a park] .\n"
            "[/EN#0/notvisual It] is late .\n"
        ),
        "test.txt": "100\n",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def test_flickr30k(tmp_path, write_image):
    root = flickr_folder(tmp_path, write_image)
    with pytest.warns(UserWarning, match="1 boxes reached outside"):
        data = load_detection("flickr30k_entities", root=tmp_path)
    assert data.class_names == () and data.train == () and len(data.test) == 2
    first, second = data.test
    assert first.caption == "A man and dogs , he is in a park ." and first.image_id == "100#0"
    assert [[first.caption[a:b] for a, b in spans] for spans in first.phrases] == [["A man", "he"], ["dogs"]]
    assert first.labels.tolist() == [0, 1, 1]
    assert first.boxes.tolist() == [[5, 5, 30, 40], [20, 20, 60, 50], [0, 0, 9, 9]]
    assert first.ids.tolist() == [7, 8, 8]
    assert (second.caption, second.phrases, len(second)) == ("It is late .", (), 0)
    assert data.report.counts == {"clipped": 1, "unseen_phrases": 2, "empty_images": 1}
    assert data.report.boxes == 3
    with pytest.raises(ConfigError, match="phrases instead of classes"):
        data.few_shot(1)
    (root / "Annotations/100.xml").write_text("<annotation/>")
    with pytest.raises(DataError, match="100.xml.*Flickr30k Entities"):
        load_detection("flickr30k_entities", root=tmp_path)
    (root / "test.txt").write_text("100\n101")
    with pytest.raises(DataError, match="names 1 of 2 pictures that are absent"):
        load_detection("flickr30k_entities", root=tmp_path)
    (root / "test.txt").unlink()
    with pytest.raises(DataError, match="must hold train.txt"):
        load_detection("flickr30k_entities", root=tmp_path)
