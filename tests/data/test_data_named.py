"""The named data sets, on folders made in their real layout."""

import json
import unicodedata

import numpy as np
import pytest

from duotune.data import DATASETS, load_dataset
from duotune.data.images import open_image
from duotune.errors import ClassNamesError, DataError

# Facts of github.com/KaiyangZhou/CoOp: configs' data set -> folder, image folder, split file, template.
COMMUNITY = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "a photo of a {}."),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json", "{} texture."),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json", "a centered satellite photo of {}."),
    "food101": ("food-101", "images", "split_zhou_Food101.json", "a photo of {}, a type of food."),
    "oxford_flowers": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "a photo of a {}, a type of flower."),
    "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json", "a photo of a {}, a type of pet."),
    "stanford_cars": ("stanford_cars", "", "split_zhou_StanfordCars.json", "a photo of a {}."),
    "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json", "a photo of a {}."),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "a photo of a person doing {}."),
}
WITHOUT_SPLIT_FILE = {
    "fgvc_aircraft": ("fgvc_aircraft", "a photo of a {}, a type of aircraft."),
    "imagenet": ("imagenet", "a photo of a {}."),
    "imagenet_a": ("imagenet-adversarial", "a photo of a {}."),
    "imagenet_r": ("imagenet-rendition", "a photo of a {}."),
    "imagenet_sketch": ("imagenet-sketch", "a photo of a {}."),
    "imagenet_v2": ("imagenetv2", "a photo of a {}."),
}


def counts(data):
    return [len(data.train), len(data.val), len(data.test)]


def label_counts(items):
    return np.bincount([i.label for i in items]).tolist()


def test_these_are_all():
    assert COMMUNITY.keys() | WITHOUT_SPLIT_FILE.keys() == set(DATASETS)
    for name, (folder, template) in WITHOUT_SPLIT_FILE.items():
        dataset = DATASETS.get(name)
        assert (dataset.folder, dataset.split_file, dataset.template) == (folder, None, template)


@pytest.mark.parametrize("name", COMMUNITY)
def test_split_file(name, tmp_path, write_image):
    folder, images, split_file, template = COMMUNITY[name]
    rows = {"train": [], "val": [], "test": []}
    for label, cls in enumerate(("some_kind", "other kind")):
        for i, part in enumerate(["train", "train", "val", "test"]):
            path = f"{cls}/{i}.jpg"
            write_image(tmp_path / folder / images / path, seed=i)
            rows[part].append([path, label, cls])
    (tmp_path / folder / split_file).write_text(json.dumps(rows))
    data = load_dataset(name, root=tmp_path)
    assert data.name == name and data.template == template and data.templates == ()
    assert data.class_names == ("some kind", "other kind")
    for part in rows:
        found = getattr(data, part)
        assert [(str(i.path), i.label) for i in found] == [
            (str(tmp_path / folder / images / path), label) for path, label, _ in rows[part]
        ]
    assert open_image(data.train[0]).size == (12, 10)
    assert load_dataset(name, root=tmp_path, seed=5) == data  # the file decides, not the seed


def test_split_file_faults(tmp_path, write_image):
    write_image(tmp_path / "dtd/images/a/0.jpg")
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    good = ["a/0.jpg", 0, "a"]

    def reading(content, error, match):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(error, match=match):
            load_dataset("dtd", root=tmp_path)

    reading("{", DataError, "is no split file: expected")
    reading({"train": [good]}, DataError, "is no split file.*val")
    reading({"train": [["a/0.jpg", 0]], "val": [], "test": []}, DataError, "is no split file")
    reading([1, 2], DataError, "is no split file")
    absent = [[f"a/{i}.jpg", 0, "a"] for i in range(1, 6)]
    reading(
        {"train": [good, *absent], "val": [], "test": []},
        DataError,
        r"names 5 of 6 pictures that are absent: '.*a/1.jpg', '.*a/2.jpg', '.*a/3.jpg' and 2 more",
    )
    reading({"train": [good, ["a/0.jpg", 2, "c"]], "val": [], "test": []}, DataError, "without gaps; absent: '1'")
    reading({"train": [good, ["a/0.jpg", 0, "c"]], "val": [], "test": []}, DataError, "called both 'a' and 'c'")
    reading({"train": [good, ["a/0.jpg", 1, "a"]], "val": [], "test": []}, ClassNamesError, "must be different")
    reading({"train": [], "val": [], "test": []}, DataError, "no pictures found")


@pytest.mark.parametrize(
    "name, folder, classes, names",
    [
        ("dtd", "dtd/images", ["polka-dotted", "banded"], ("banded", "polka-dotted")),
        ("food101", "food-101/images", ["apple_pie", "waffles"], ("apple pie", "waffles")),
        (
            "caltech101",
            "caltech-101/101_ObjectCategories",
            ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "airplanes", "water_lilly"],
            ("face", "leopard", "motorbike", "airplane", "water lilly"),
        ),
        (
            "eurosat",
            "eurosat/2750",
            (
                "AnnualCrop Forest HerbaceousVegetation Highway Industrial "
                "Pasture PermanentCrop Residential River SeaLake"
            ).split(),
            (
                "Annual Crop Land",
                "Forest",
                "Herbaceous Vegetation Land",
                "Highway or Road",
                "Industrial Buildings",
                "Pasture Land",
                "Permanent Crop Land",
                "Residential Buildings",
                "River",
                "Sea or Lake",
            ),
        ),
    ],
)
def test_class_folders_without_split_file(name, folder, classes, names, class_folders, tmp_path):
    class_folders(folder, dict.fromkeys(classes, 10), suffix=".jpg")
    data = load_dataset(name, root=tmp_path, seed=1)
    assert data.class_names == names
    n = len(names)
    assert counts(data) == [5 * n, 2 * n, 3 * n] and label_counts(data.test) == [3] * n
    kept = sorted(c for c in classes if c not in ("BACKGROUND_Google", "Faces_easy"))
    assert all(i.path.parent.name == kept[i.label] for i in data.train)
    assert load_dataset(name, root=tmp_path, seed=1) == data != load_dataset(name, root=tmp_path, seed=2)


def test_pets_annotations(tmp_path, write_image):
    root = tmp_path / "oxford_pets"
    lists = {"trainval": [], "test": []}
    for label, breed in enumerate(["Abyssinian", "american_bulldog", "Egyptian_Mau"], start=1):
        for i in range(13):
            write_image(root / "images" / f"{breed}_{i}.jpg", seed=i)
            lists["trainval" if i < 10 else "test"].append(f"{breed}_{i} {label} 1 {label}")
    (root / "annotations").mkdir()
    for kind, lines in lists.items():
        (root / "annotations" / f"{kind}.txt").write_text("\n".join(lines) + "\n")
    data = load_dataset("oxford_pets", root=tmp_path)
    assert data.class_names == ("abyssinian", "american bulldog", "egyptian mau")
    assert counts(data) == [24, 6, 9] and label_counts(data.val) == [2, 2, 2]
    assert [i.path.stem for i in data.test[:3]] == ["Abyssinian_10", "Abyssinian_11", "Abyssinian_12"]
    (root / "annotations" / "test.txt").write_text("Abyssinian_10\n")
    with pytest.raises(DataError, match="test.txt: cannot read the line 'Abyssinian_10'; expected lines 'IMAGE LABEL"):
        load_dataset("oxford_pets", root=tmp_path)
    (root / "annotations" / "test.txt").unlink()
    with pytest.raises(DataError, match="no such file: .*test.txt"):
        load_dataset("oxford_pets", root=tmp_path)


def test_aircraft(tmp_path, write_image):
    root = tmp_path / "fgvc_aircraft"
    names = ["707-320", "F/A-18", "Cessna 172"]
    for kind, per_class in (("train", 3), ("val", 2), ("test", 4)):
        lines = []
        for label, name in enumerate(names):
            for i in range(per_class):
                image = f"{len(kind)}{label}{i:05d}"
                write_image(root / "images" / f"{image}.jpg", seed=i)
                lines.append(f"{image} {name}")
        (root / f"images_variant_{kind}.txt").write_text("\n".join(lines) + "\n")
    (root / "variants.txt").write_text("\n".join(names) + "\n")
    data = load_dataset("fgvc_aircraft", root=tmp_path)
    assert data.class_names == tuple(names) and counts(data) == [9, 6, 12]
    assert label_counts(data.test) == [4, 4, 4]
    (root / "images_variant_val.txt").write_text("5000000 Concorde\n")
    with pytest.raises(DataError, match="cannot read the line '5000000 Concorde'"):
        load_dataset("fgvc_aircraft", root=tmp_path)


def struct_array(rows, dtype):
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in dtype])
    for i, row in enumerate(rows):
        array[0, i] = row
    return array


def test_cars_annotations(tmp_path, write_image):
    savemat = pytest.importorskip("scipy.io").savemat
    root = tmp_path / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    names = np.empty((1, 2), dtype=object)
    names[0] = ["Tesla Model S Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    for images, file, n in (
        ("cars_train", "devkit/cars_train_annos.mat", 10),
        ("cars_test", "cars_test_annos_withlabels.mat", 4),
    ):
        rows = []
        for i in range(2 * n):
            write_image(root / images / f"{i + 1:05d}.jpg", seed=i)
            rows.append((1, 1, 9, 9, i % 2 + 1, f"{i + 1:05d}.jpg"))
        fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
        savemat(root / file, {"annotations": struct_array(rows, fields)})
    data = load_dataset("stanford_cars", root=tmp_path)
    assert data.class_names == ("2012 Tesla Model S Sedan", "2012 Ram C/V Cargo Van Minivan")
    assert counts(data) == [16, 4, 8] and label_counts(data.train) == [8, 8]
    assert all((int(i.path.stem) - 1) % 2 == i.label for i in data.test)
    (root / "cars_test" / "00003.jpg").unlink()
    with pytest.raises(DataError, match="withlabels.mat names 1 of 8 pictures that are absent: .*00003.jpg"):
        load_dataset("stanford_cars", root=tmp_path)
    (root / "devkit" / "cars_meta.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(DataError, match="cannot read the MATLAB file"):
        load_dataset("stanford_cars", root=tmp_path)


def flowers(root, write_image):
    savemat = pytest.importorskip("scipy.io").savemat
    labels = [1, 2] * 10
    for i in range(20):
        write_image(root / "jpg" / f"image_{i + 1:05d}.jpg", seed=i)
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    (root / "cat_to_name.json").write_text(json.dumps({"2": "hard-leaved pocket orchid", "1": "pink primrose"}))


def test_flowers_annotations(tmp_path, write_image):
    root = tmp_path / "oxford_flowers"
    flowers(root, write_image)
    data = load_dataset("oxford_flowers", root=tmp_path)
    assert data.class_names == ("pink primrose", "hard-leaved pocket orchid") and counts(data) == [10, 4, 6]
    assert all((int(i.path.stem[-5:]) - 1) % 2 == i.label for i in data.train)
    (root / "cat_to_name.json").write_text(json.dumps({"1": "pink primrose"}))
    with pytest.raises(DataError, match=r"has the labels \[2\], which cat_to_name.json does not name"):
        load_dataset("oxford_flowers", root=tmp_path)
    (root / "cat_to_name.json").write_text("[]")
    with pytest.raises(DataError, match="is not a JSON object"):
        load_dataset("oxford_flowers", root=tmp_path)


def test_mat_files_without_scipy(tmp_path, write_image, monkeypatch):
    flowers(tmp_path / "oxford_flowers", write_image)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"imagelabels.mat needs SciPy; install it .*or add the data set's split file"):
        load_dataset("oxford_flowers", root=tmp_path)


def test_sun_annotations(tmp_path, write_image):
    root = tmp_path / "sun397"
    classes = ["/a/abbey", "/a/apartment_building/outdoor"]
    lists = {"Training_01": [], "Testing_01": []}
    for cls in classes:
        for i in range(8):
            write_image(root / f"SUN397{cls}" / f"sun_{i}.jpg", seed=i)
            lists["Training_01" if i < 5 else "Testing_01"].append(f"{cls}/sun_{i}.jpg")
    for name, lines in {**lists, "ClassName": classes}.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    data = load_dataset("sun397", root=tmp_path)
    assert data.class_names == ("abbey", "outdoor apartment building") and counts(data) == [8, 2, 6]


def test_ucf_annotations(tmp_path, write_image):
    root = tmp_path / "ucf101"
    (root / "ucfTrainTestlist").mkdir(parents=True)
    train, test = [], []
    for label, (action, folder) in enumerate([("ApplyEyeMakeup", "Apply_Eye_Makeup"), ("TaiChi", "Tai_Chi")], start=1):
        for i in range(8):
            write_image(root / "UCF-101-midframes" / folder / f"v_{action}_g{i:02d}_c01.jpg", seed=i)
            line = f"{action}/v_{action}_g{i:02d}_c01.avi"
            train.append(f"{line} {label}") if i < 5 else test.append(line)
    (root / "ucfTrainTestlist" / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 TaiChi\n")
    (root / "ucfTrainTestlist" / "trainlist01.txt").write_text("\r\n".join(train))
    (root / "ucfTrainTestlist" / "testlist01.txt").write_text("\r\n".join(test))
    data = load_dataset("ucf101", root=tmp_path)
    assert data.class_names == ("Apply Eye Makeup", "Tai Chi") and counts(data) == [8, 2, 6]


def wordnet_names(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{wordnet} {name}\n" for wordnet, name in names.items()))


NAMES = {
    "n01440764": "tench",
    "n01484850": "great white shark",
    "n03773504": "missile",
    "n04008634": "missile",
    "n04355933": "sunglasses",
    "n04356056": "sunglasses",
}


def test_imagenet(tmp_path, class_folders):
    wordnet_names(tmp_path / "imagenet", NAMES)
    class_folders("imagenet/images/train", dict.fromkeys(NAMES, 3), suffix=".JPEG")
    class_folders("imagenet/images/val", dict.fromkeys(NAMES, 2), suffix=".JPEG")
    data = load_dataset("imagenet", root=tmp_path)
    # The community's list has two pairs of equal names; WordNet's own keep them apart.
    assert data.class_names == ("tench", "great white shark", "missile", "projectile", "sunglass", "sunglasses")
    assert counts(data) == [18, 0, 12]
    assert all(list(NAMES)[i.label] == i.path.parent.name for i in data.test)
    assert len(data.templates) == 7 and data.templates[0] == "itap of a {}."
    assert data.few_shot(2).val == ()
    class_folders("imagenet/images/train", {"n00000001": 1})
    with pytest.raises(DataError, match=r"has the folders \['n00000001'\], which .*classnames.txt does not name"):
        load_dataset("imagenet", root=tmp_path)


@pytest.mark.parametrize(
    "name, images",
    [
        ("imagenet_a", "imagenet-adversarial/imagenet-a"),
        ("imagenet_r", "imagenet-rendition/imagenet-r"),
        ("imagenet_sketch", "imagenet-sketch/images"),
    ],
)
def test_imagenet_variants(name, images, tmp_path, class_folders):
    wordnet_names(tmp_path / images.split("/")[0], NAMES)
    class_folders(images, {"n01484850": 2, "n04008634": 3}, suffix=".jpg")
    (tmp_path / images / "README.txt").write_text("as shipped")
    data = load_dataset(name, root=tmp_path)
    assert data.class_names == ("great white shark", "projectile") and counts(data) == [0, 0, 5]
    assert label_counts(data.test) == [2, 3]
    assert len(data.templates) == 8
    with pytest.raises(DataError, match="2 of 2 classes have fewer"):
        data.few_shot(1)


def test_imagenet_v2_counts_folders_as_numbers(tmp_path, class_folders):
    names = {f"n{i:08d}": f"kind {i}" for i in range(12)}
    wordnet_names(tmp_path / "imagenetv2", names)
    images = "imagenetv2/imagenetv2-matched-frequency-format-val"
    class_folders(images, {str(i): 2 for i in range(12)}, suffix=".jpeg")
    data = load_dataset("imagenet_v2", root=tmp_path)
    assert data.class_names == tuple(names.values()) and counts(data) == [0, 0, 24]
    assert all(int(i.path.parent.name) == i.label for i in data.test)
    class_folders(images, {"12": 1})
    with pytest.raises(DataError, match=r"has the folders \['12'\]; expected numbers 0..11"):
        load_dataset("imagenet_v2", root=tmp_path)


def test_missing_parts(tmp_path, class_folders):
    (tmp_path / "dtd").mkdir()
    with pytest.raises(DataError, match="no such folder: .*dtd/images; expected one folder of pictures per class"):
        load_dataset("dtd", root=tmp_path)
    (tmp_path / "dtd" / "images").mkdir()
    with pytest.raises(DataError, match="images is empty; expected one folder"):
        load_dataset("dtd", root=tmp_path)
    class_folders("dtd/images", {"banded": 3, "woven": 0})
    with pytest.raises(DataError, match="dtd: 1 of 2 classes have no pictures: 'woven'"):
        load_dataset("dtd", root=tmp_path)
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(DataError, match="no such file: .*classnames.txt; expected lines 'n01440764 tench'"):
        load_dataset("imagenet", root=tmp_path)


def test_accents_of_listed_files_and_junk_beside_class_folders(tmp_path, write_image, class_folders):
    nfc, nfd = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    write_image(tmp_path / "dtd" / "images" / nfd / f"{nfd}.png")
    rows = {"train": [[f"{nfc}/{nfc}.png", 0, nfc]], "val": [], "test": []}
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(rows))
    data = load_dataset("dtd", root=tmp_path)
    assert data.class_names == (nfc,) and open_image(data.train[0]).size == (12, 10)
    class_folders("eurosat/2750", {"Forest": 4, "River": 4, "__MACOSX": 1, "@eaDir": 1, ".cache": 1})
    assert load_dataset("eurosat", root=tmp_path).class_names == ("Forest", "River")
