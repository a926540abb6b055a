"""CSV files as spreadsheets and scripts write them, and Hugging Face's metadata tables."""

import json
import unicodedata
import zipfile

import pytest

from duotune.data import load_dataset
from duotune.data.images import close_containers, open_image
from duotune.errors import ClassNamesError, DataError

NFC, NFD = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")


@pytest.fixture(autouse=True)
def closed():
    yield
    close_containers()


@pytest.fixture
def table(tmp_path, write_image):
    """table(text, encoding): a CSV file beside images/0.png ... images/5.png."""
    for i in range(6):
        write_image(tmp_path / "images" / f"{i}.png", seed=i)

    def write(text, encoding="utf-8", name="list.csv"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return write


def rows(data):
    """(split, file, class name) of every item."""
    return [
        (split, item.short_key.split("/")[-1], data.class_names[item.label])
        for split in ("train", "val", "test")
        for item in getattr(data, split)
    ]


PLAIN = "path,label,split\nimages/0.png,r\u00e4d fox,train\nimages/1.png,cat,val\nimages/2.png,cat,test\n"
TOLD = [("train", "0.png", "r\u00e4d fox"), ("val", "1.png", "cat"), ("test", "2.png", "cat")]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", "|"),
        lambda text: "sep=;\n" + text.replace(",", ";"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: "\n" + text.replace("\n", "\n\n"),
        lambda text: text.replace("path,label,split", "Filename,Class,Subset"),
        lambda text: text.replace("path,label,split", "image , CATEGORY,partition"),
        lambda text: text.replace("path,label,split", "file,target,set"),
        lambda text: text.replace("path,label,split", '"Image Path","class-name","data set"'),
        lambda text: text.replace(",val", ",Validation").replace(",train", ",TRAINING").replace(",test", ", eval"),
        lambda text: text.replace("images/", "images\\"),
        lambda text: text.replace("images/", ""),
        lambda text: text.replace("images/", "./images/"),
        lambda text: text.replace("cat", '"cat"').replace("images/0.png", '"images/0.png"'),
        lambda text: text.replace("r\u00e4d", unicodedata.normalize("NFD", "r\u00e4d")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_writing_of_one_table_reads_the_same(table, change, encoding):
    assert rows(load_dataset(table(change(PLAIN), encoding))) == TOLD


def test_separators_inside_quotes_and_paths_that_are_absolute(table, tmp_path):
    path = table(f'path;label\n{tmp_path}/images/0.png;"cat; big, or ""small"""\nimages/1.png;dog\n')
    data = load_dataset(path, test_share=0, val_share=0)
    assert sorted(rows(data)) == [("train", "0.png", 'cat; big, or "small"'), ("train", "1.png", "dog")]


def test_files_are_found_however_their_accents_are_stored(table, tmp_path, write_image):
    write_image(tmp_path / "images" / f"{NFD}.png")
    data = load_dataset(table(f"path,label,split\nimages/{NFC}.png,{NFD},train\nimages/1.png,{NFC},train\n"))
    assert data.class_names == (NFC,) and [open_image(item).size for item in data.train] == [(12, 10)] * 2


def test_folders_of_splits_in_the_paths_are_the_splits(table, tmp_path, write_image):
    names = ["set/Train/cat/0.png", "set/Train/dog/1.png", "set/test/cat/2.png"]
    for number, name in enumerate(names):
        write_image(tmp_path / name, seed=number)
    lines = [f"{name},{name.split('/')[2]}\n" for name in names]
    text = "path,label\n" + "".join(lines)
    told = [("train", "0.png", "cat"), ("train", "1.png", "dog"), ("test", "2.png", "cat")]
    assert rows(load_dataset(table(text))) == rows(load_dataset(table(text.replace("/", "\\")))) == told
    one = load_dataset(table("path,label\n" + "".join(lines[:2])), test_share=0)
    assert len(one.train) == 2  # all in the folder of one split: how they are split is left to the seed
    with pytest.raises(DataError, match=r"but 1 do not, such as 'images/0.png' \(line 5\); add a column split"):
        load_dataset(table(text + "images/0.png,cat\n"))


def test_the_first_name_of_a_column_goes_before_others(table):
    data = load_dataset(table("image,path,label,class,split\nx,images/0.png,cat,7,train\n"))
    assert rows(data) == [("train", "0.png", "cat")]


@pytest.mark.parametrize(
    "text, says",
    [
        ("name;what\na;b\n", r"lacks the columns \['path', 'label'\].*found \['name', 'what'\]"),
        ("images/0.png,cat\nimages/1.png,dog\n", "lacks the columns"),
        ("file,image,label\na,b,c\n", r"several columns that may be the path: \['file', 'image'\]; call one 'path'"),
        ("path,class,target\na,b,c\n", r"several columns that may be the label: \['class', 'target'\]"),
        ("path,label,label\na,b,c\n", r"several columns that may be the label: \['label', 'label'\]"),
        ("path,label\nimages/0.png,red, white\n", "line 2: 3 columns, but the header has 2; write.*in quotes"),
        ("path,label,is_valid\nimages/0.png,cat,True\n", r"has the columns \['is_valid'\], but no column split; write"),
        ("path,label\nimages/0.png\n", "line 2: path and label must not be empty"),
        ("path,label,split\nimages/0.png,cat,\n", "line 2: split must be train, val or test, not ''"),
        ("path,label\nimages/0.png,0.0\nimages/1.png,1.0\n", "labels are numbers, which name nothing"),
        ("path,label\nimages/0.png,cat\nimages/0.png,dog\n", "line 3: 'images/0.png' is in line 2 already, with anoth"),
        ("path,label\nimages/0.png,cat\n./images/0.png,cat\n", "line 3: './images/0.png' is in line 2 already; a pic"),
        ("path,label,split\nimages/0.png,a,train\nimages/0.png,a,test\n", "line 3: .* another label or split"),
        ("path,label\nimages/0.png,red_fox\nimages/1.png,red fox\n", "'red fox' from"),
        ("path,label\nimages/\0.png,cat\n", "1 of 1 pictures that are absent"),
    ],
)
def test_faulty_tables(table, text, says):
    with pytest.raises((DataError, ClassNamesError), match=says):
        load_dataset(table(text))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "cp1252"])
def test_other_encodings_are_refused_with_the_cause(table, encoding):
    with pytest.raises(DataError, match="no UTF-8 text: byte 0xe4|UTF-16 without its mark"):
        load_dataset(table(PLAIN, encoding))


def test_utf16_without_its_mark_is_told_as_such(table):
    with pytest.raises(DataError, match="UTF-16 without its mark; save it as UTF-8"):
        load_dataset(table("path,label\nimages/0.png,cat\n", "utf-16-le"))


def test_numbers_written_with_a_point_are_numbers(table):
    path = table("path,label,split\nimages/0.png,1.0,train\nimages/1.png,0.0,train\n")
    assert rows(load_dataset(path, class_names=["cat", "dog"])) == [
        ("train", "0.png", "dog"),
        ("train", "1.png", "cat"),
    ]
    with pytest.raises(DataError, match="labels '1.0' are not among the 1 class_names"):
        load_dataset(path, class_names=["cat"])


# --- Hugging Face's metadata -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, write_image):
    """folder({"train/metadata.csv": text}, "train/0.png", ...)."""

    def make(tables, *images):
        for number, name in enumerate(images):
            write_image(tmp_path / "set" / name, seed=number)
        for name, text in tables.items():
            (tmp_path / "set" / name).write_text(text)
        return tmp_path / "set"

    return make


def zipped(root):
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent).as_posix())
    return path


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def test_metadata_in_each_splits_folder(folder):
    train = lines({"file_name": "0.png", "label": "cat", "text": "x"}, {"file_name": "deep/1.png", "label": "dog"})
    tables = {"train/metadata.jsonl": train, "Test/metadata.csv": "file_name,label\n2.png,dog\n"}
    root = folder(tables, "train/0.png", "train/deep/1.png", "Test/2.png")
    for path in (root, zipped(root)):
        data = load_dataset(path)
        assert rows(data) == [("train", "0.png", "cat"), ("train", "1.png", "dog"), ("test", "2.png", "dog")]
        assert [open_image(item).size for item in data.train + data.test] == [(12, 10)] * 3


def test_metadata_of_pictures_in_the_folder_beside_it(folder):
    table = lines({"file_name": "0.png", "label": "cat"}, {"file_name": "1.png", "label": "dog"})
    root = folder({"Metadata.JSONL": table}, "images/0.png", "images/1.png")
    data = load_dataset(root, test_share=0, val_share=0)
    assert sorted(rows(data)) == [("train", "0.png", "cat"), ("train", "1.png", "dog")]


@pytest.mark.parametrize("images", ["train/0.png train/1.png test/2.png", "0.png 1.png 2.png"])
def test_metadata_at_the_top(folder, images):
    images = images.split()
    root = folder({"metadata.csv": "file_name,label\n" + "".join(f"{name},cat\n" for name in images)}, *images)
    data = load_dataset(root)
    assert data.class_names == ("cat",) and len(data.train + data.val + data.test) == 3
    if "/" in images[0]:
        assert rows(data) == [("train", "0.png", "cat"), ("train", "1.png", "cat"), ("test", "2.png", "cat")]


def test_numbers_in_metadata_are_named_by_the_description(folder):
    table = lines({"file_name": "0.png", "label": 1}, {"file_name": "1.png", "label": 0})
    root = folder({"train/metadata.jsonl": table}, "train/0.png", "train/1.png")
    with pytest.raises(DataError, match="labels are numbers"):
        load_dataset(root)
    (root / "dataset.json").write_text(json.dumps({"class_names": ["cat", "dog"]}))
    assert rows(load_dataset(root)) == [("train", "0.png", "dog"), ("train", "1.png", "cat")]


def test_captions_beside_class_folders_are_no_labels(folder):
    root = folder({"metadata.csv": "file_name,text\ncat/0.png,a cat\n"}, "cat/0.png", "dog/1.png")
    assert load_dataset(root).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "tables, says",
    [
        ({"metadata.csv": "file_name,label\n0.png,cat\n"}, "1 pictures have no row in it: '1.png'"),
        ({"metadata.csv": "file_name,label\n0.png,a\n1.png,b\n2.png,b\n"}, "1 of 3 pictures that are absent: '2.png'"),
        ({"metadata.jsonl": '{"file_name": "0.png", "label": ["cat"]}'}, r"line 1: label must be text, not \['cat'\]"),
        ({"metadata.jsonl": '{"file_name": "0.png", "label": "cat"\n'}, "line 1 is not valid JSON"),
        ({"metadata.jsonl": '["0.png"]'}, "line 1: expected a JSON object"),
        (
            {"metadata.jsonl": lines({"file_name": "0.png", "label": "a"}, {"file_name": "1.png"})},
            "1 of 2 lines have no",
        ),
        ({"metadata.csv": "file_name,text\n0.png,a cat\n"}, "2 pictures lie outside class folders"),
    ],
)
def test_faulty_metadata(folder, tables, says):
    with pytest.raises(DataError, match=says):
        load_dataset(folder(tables, "0.png", "1.png"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('path,label\nimages/0.png,"cat\nimages/1.png,dog\n', "is no CSV file.*check its quotes"),
        ('path,label\nimages/0.png,"cat" big\nimages/1.png,dog\n', "is no CSV file.*check its quotes"),
        ('path,label\nimages/0.png,"cat\nimages/1.png,dog"\nimages/2.png,cow\n', "line 3: a line ends within"),
        ("path,label\nimages/0.png,Cat\nimages/1.png,cat\n", "labels 'Cat' and 'cat' differ in capitals alone"),
        ("path,label\nimages/0.png,0\nimages/1.png,1\n", "labels are numbers, which name nothing; write names"),
    ],
)
def test_what_would_be_read_as_other_labels(table, text, says):
    with pytest.raises(DataError, match=says):
        load_dataset(table(text))


def test_labels_that_differ_in_capitals_on_purpose(table):
    letters = load_dataset(table("path,label,split\nimages/0.png,A,train\nimages/1.png,a,test\n"))
    assert rows(letters) == [("train", "0.png", "A"), ("test", "1.png", "a")]
    text = "path,label,split\nimages/0.png,Cat,train\nimages/1.png,cat,train\n"
    kept = load_dataset(table(text), class_names=["cat", "Cat"])
    assert rows(kept) == [("train", "0.png", "Cat"), ("train", "1.png", "cat")]


def test_a_picture_in_two_tables(folder):
    told = lines({"file_name": "0.png", "label": "dog"}, {"file_name": "1.png", "label": "cat"})
    with pytest.raises(DataError, match="metadata.jsonl: '0.png', '1.png' have a row in another table too"):
        load_dataset(folder({"metadata.csv": "file_name,label\n0.png,cat\n1.png,dog\n", "metadata.jsonl": told},
                            "0.png", "1.png"))  # fmt: skip
