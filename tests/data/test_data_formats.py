"""CSV files, saved Hugging Face data sets, and what load_dataset makes of a name or path."""

import os
from pathlib import Path

import pytest

import duotune.data
from duotune.data import DATASETS, EMBEDDED_TASKS, discover_tasks, list_datasets, load_dataset
from duotune.data.images import close_containers, open_image
from duotune.errors import ClassNamesError, ConfigError, DataError, UnknownNameError
from duotune.registry import Registry

# --- CSV -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path, write_image):
    for i in range(12):
        write_image(tmp_path / "images" / f"{i}.png", seed=i)

    def write(text: str, encoding="utf-8") -> Path:
        (tmp_path / "list.csv").write_text(text, encoding=encoding)
        return tmp_path / "list.csv"

    return write


def test_csv_with_splits(table, tmp_path):
    path = table(
        "label, path ,split,note\nred_fox,images/0.png,train,x\ncat,images/1.png,Train,\n"
        'cat,"images/2.png",validation,\nred fox,images/3.png,test,\n',
        "utf-8-sig",
    )
    with pytest.raises(ClassNamesError, match="red fox"):
        load_dataset(path)  # "red_fox" and "red fox" are written both ways
    data = load_dataset(path, class_names=["red fox", "cat"], template="a {}.")
    assert data.class_names == ("red fox", "cat") and data.template == "a {}." and data.name == "list"
    assert [(i.path, i.label) for i in data.train] == [(tmp_path / "images/0.png", 0), (tmp_path / "images/1.png", 1)]
    assert [i.label for i in data.val] == [1] and [i.label for i in data.test] == [0]


def test_csv_without_splits_is_split_by_seed(table):
    path = table("path,label\n" + "".join(f"images/{i}.png,{'cat' if i < 6 else 'dog'}\n" for i in range(12)))
    data = load_dataset(path, seed=1)
    assert data.class_names == ("cat", "dog")
    assert [len(data.train), len(data.val), len(data.test)] == [6, 2, 4]
    assert load_dataset(path, seed=1) == data


def test_csv_with_numbers(table):
    path = table("path,label,split\nimages/0.png,1,train\nimages/1.png,0,train\n")
    with pytest.raises(DataError, match="labels are numbers.*class_names"):
        load_dataset(path)
    data = load_dataset(path, class_names=["cat", "dog"])
    assert [data.class_names[i.label] for i in data.train] == ["dog", "cat"]


@pytest.mark.parametrize(
    "text, match",
    [
        ("photo,label\na,b\n", r"lacks the columns \['path'\]; expected path,label.*found \['photo', 'label'\]"),
        ("", "lacks the columns"),
        ("path,label\n", "a header but no rows"),
        ("path,label\nimages/0.png,\n", "line 2: path and label must not be empty"),
        ("path,label,split\nimages/0.png,cat,late\n", "line 2: split must be train, val or test, not 'late'"),
        (
            "path,label\nimages/0.png,cat\nimages/x.png,cat\nimages/y.png,cat\n",
            "names 2 of 3 pictures that are absent: .*x.png",
        ),
    ],
)
def test_faulty_csv(table, text, match):
    with pytest.raises(DataError, match=match):
        load_dataset(table(text))


def test_csv_label_outside_class_names(table):
    with pytest.raises(DataError, match="labels 'fox' are not among the 2 class_names"):
        load_dataset(table("path,label\nimages/0.png,fox\n"), class_names=["cat", "dog"])


# --- Hugging Face data sets on disk ----------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path, write_image):
    datasets = pytest.importorskip("datasets")

    def make(labels, names=("cat", "red_fox"), start=0):
        files = [str(write_image(tmp_path / "src" / f"{start + i}.png", seed=start + i)) for i in range(len(labels))]
        features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))})
        made = datasets.Dataset.from_dict({"picture": files, "kind": labels}, features=features)
        # Store the bytes themselves, as published data sets do.
        return made.map(lambda row: row, features=features)

    return make


def test_saved_dataset_dict(rows, tmp_path, write_image):
    import datasets

    saved = datasets.DatasetDict(
        train=rows([0, 1, 1]), validation=rows([1, 0], start=3), test=rows([0, -1, 1], start=5)
    )
    saved.save_to_disk(str(tmp_path / "hf"))
    data = load_dataset(tmp_path / "hf")
    assert data.class_names == ("cat", "red fox") and data.name == "hf"
    assert [i.label for i in data.train] == [0, 1, 1] and [i.label for i in data.val] == [1, 0]
    assert [(i.label, i.member) for i in data.test] == [(0, "0"), (1, "2")]  # the unlabelled row is left out
    from PIL import Image

    assert open_image(data.test[1]).tobytes() == Image.open(tmp_path / "src" / "7.png").tobytes()
    assert data.test[1].short_key == "test/2"
    close_containers()


def test_saved_dataset_is_split_by_seed(rows, tmp_path):
    rows([0] * 10 + [1] * 10).save_to_disk(str(tmp_path / "hf"))
    data = load_dataset(str(tmp_path / "hf"), seed=3)
    assert [len(data.train), len(data.val), len(data.test)] == [10, 4, 6]
    assert load_dataset(str(tmp_path / "hf"), class_names=["a", "b"]).class_names == ("a", "b")
    with pytest.raises(DataError, match="has 2 classes, but class_names has 3"):
        load_dataset(str(tmp_path / "hf"), class_names=["a", "b", "c"])


def test_saved_dataset_faults(rows, tmp_path):
    import datasets

    made = rows([0, 1])
    made.remove_columns("kind").save_to_disk(str(tmp_path / "a"))
    with pytest.raises(DataError, match="expected one ClassLabel column.*cast_column one to datasets.ClassLabel"):
        load_dataset(tmp_path / "a")
    twice = made.add_column("coarse", [0, 0]).cast_column("coarse", datasets.ClassLabel(names=["x"]))
    twice.save_to_disk(str(tmp_path / "b"))
    with pytest.raises(DataError, match=r"\['kind', 'coarse'\].*label_column"):
        load_dataset(tmp_path / "b")
    assert load_dataset(tmp_path / "b", label_column="kind", test_share=0).class_names == ("cat", "red fox")
    datasets.DatasetDict(train=made, other=made).save_to_disk(str(tmp_path / "c"))
    assert len(load_dataset(tmp_path / "c").train) == 2
    datasets.DatasetDict(other=made).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"expected splits train.*found \['other'\]"):
        load_dataset(tmp_path / "d")
    datasets.DatasetDict(train=made, test=rows([0], names=("dog", "cat"))).save_to_disk(str(tmp_path / "e"))
    with pytest.raises(DataError, match="split 'test' has other class names than 'train'"):
        load_dataset(tmp_path / "e")
    next((tmp_path / "c" / "train").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot read the Hugging Face data set"):
        load_dataset(tmp_path / "c")


# --- names and paths -------------------------------------------------------------------------------------------------


def test_files_and_table_in_bijection():
    folder = Path(duotune.data.__file__).parent / "datasets"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert len(files) == 15
    assert files == set(DATASETS)
    for name in DATASETS:
        dataset = DATASETS.get(name)
        assert dataset.name == name and dataset.read_original.__module__ == f"duotune.data.datasets.{name}"
        assert all(t.count("{}") == 1 for t in (dataset.template, *dataset.templates))


def test_unknown_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="'oxford_pet'; did you mean 'oxford_pets'"):
        load_dataset("oxford_pet", root=tmp_path)
    for path in ("some/folder", "list.csv", tmp_path / "absent"):
        with pytest.raises(DataError, match="no such file or folder.*expected a folder of class folders"):
            load_dataset(path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="cannot read .*notes.txt as a data set"):
        load_dataset("notes.txt")


def test_root_and_options(class_folders, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="'dtd' needs root, the folder that holds dtd/"):
        load_dataset("dtd")
    with pytest.raises(DataError, match="no such folder: .*dtd; expected Describable Textures there: images/CLASS"):
        load_dataset("dtd", root=tmp_path)
    with pytest.raises(ConfigError, match=r"unknown options \['shots'\].*val_share"):
        load_dataset(class_folders("x", {"a": 2}), shots=3)
    # A name wins over a folder of the same name, a path does not look like a name.
    class_folders("dtd", {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path)
    assert load_dataset(f".{os.sep}dtd").class_names == ("a", "b")
    with pytest.raises(DataError, match="needs root"):
        load_dataset("dtd")


def test_embedded_tasks_are_found_in_their_folder(class_folders, tmp_path, monkeypatch):
    import zipfile

    assert discover_tasks(tmp_path / "absent") == {}
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    assert discover_tasks(tasks) == {}
    images = class_folders("images", {"train/red_fox": 2, "train/cat": 2, "test/cat": 1, "test/red_fox": 1})
    with zipfile.ZipFile(tasks / "tiny-mammals.zip", "w") as archive:
        for file in images.rglob("*.png"):
            archive.write(file, file.relative_to(images).as_posix())
    monkeypatch.setattr(duotune.data, "EMBEDDED_TASKS", Registry("data set", discover_tasks(tasks)))
    assert list_datasets()[0] == "tiny-mammals" and "dtd" in list_datasets()
    data = load_dataset("tiny-mammals")
    assert data.name == "tiny-mammals" and data.class_names == ("cat", "red fox") and len(data.train) == 4
    assert load_dataset("tiny-mammals", template="{}?").template == "{}?"
    with pytest.raises(ConfigError, match="unknown options"):
        load_dataset("tiny-mammals", shots=1)
    with pytest.raises(UnknownNameError, match="did you mean 'tiny-mammals'"):
        load_dataset("tiny-mammal")


def test_embedded_tasks_of_the_package_load():
    for name in EMBEDDED_TASKS:  # none in a bare checkout of the sources
        data = load_dataset(name)
        assert data.name == name and len(data.test) and open_image(data.test[0]).mode == "RGB"
    assert set(EMBEDDED_TASKS) == set(discover_tasks())


def test_unknown_names_are_compared_with_data_that_have_boxes_too():
    with pytest.raises(UnknownNameError, match="did you mean 'tiny-scenes'"):
        load_dataset("tiny-scene")
    with pytest.raises(DataError, match="tiny-scenes has boxes.*load_detection"):
        load_dataset("tiny-scenes")
