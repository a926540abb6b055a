import random
import unicodedata
from pathlib import Path

import pytest

from duotune.data import ClassificationData, ImageItem
from duotune.data.sampling import few_shot, shuffled, split, spread
from duotune.errors import ConfigError, DataError


def items(counts, root="/data", tag="train"):
    return tuple(
        ImageItem(Path(root) / tag / str(y) / f"{i:03d}.jpg", y) for y, n in enumerate(counts) for i in range(n)
    )


NAMES = tuple(f"class {y}" for y in range(5))


def make(counts=(20, 30, 25), val=(6, 2, 9), root="/data"):
    names = tuple(f"class {y}" for y in range(len(counts)))
    return ClassificationData(
        "toy", names, items(counts, root), items(val, root, "val"), items((5, 5, 5), root, "test")
    )


def test_shots_per_class_and_community_validation_size():
    for shots, expected_val in ((1, [1, 1, 1]), (2, [2, 2, 2]), (8, [4, 2, 4])):
        data = few_shot(make(), shots, seed=1)
        assert [sum(i.label == y for i in data.train) for y in range(3)] == [shots] * 3
        assert [sum(i.label == y for i in data.val) for y in range(3)] == expected_val
        assert len(set(data.train)) == 3 * shots
        assert data.test == make().test


def test_depends_on_items_and_seed_alone():
    data = make()
    shuffled = list(data.train)
    random.Random(0).shuffle(shuffled)
    again = ClassificationData("other", data.class_names, tuple(shuffled), data.val, data.test)
    assert few_shot(data, 4, seed=3).train == few_shot(again, 4, seed=3).train
    assert few_shot(data, 4, seed=3).train != few_shot(data, 4, seed=4).train
    # The folder's place does not matter.
    moved = few_shot(make(root="/elsewhere/deep"), 4, seed=3)
    assert [i.short_key for i in moved.train] == [i.short_key for i in few_shot(data, 4, seed=3).train]


def test_selection_is_pinned():
    """The shots of a seed are part of what results mean: they must never change."""
    names = [i.path.name for i in few_shot(make(), 3, seed=1).train if i.label == 0]
    import hashlib

    order = sorted(range(20), key=lambda i: hashlib.sha256(f"1:train:class 0:{i}".encode()).digest())
    assert names == [f"{i:03d}.jpg" for i in order[:3]]


def test_shots_are_nested_and_commute_with_class_subsets():
    data = make()
    few, more = few_shot(data, 2), few_shot(data, 8)
    assert set(few.train) < set(more.train)
    for part in ("base", "new"):
        assert data.few_shot(4).subset(part) == data.subset(part).few_shot(4)


def test_too_few_items_names_the_classes():
    data = make(counts=(20, 3, 0))
    with pytest.raises(
        DataError, match=r"4 shots wanted, but 2 of 3 classes.*'class 1 \(3\)', 'class 2 \(0\)'.*repeat=True"
    ):
        few_shot(data, 4)
    with pytest.raises(DataError, match=r"1 of 3 classes.*class 2 \(0\)"):
        few_shot(data, 4, repeat=True)
    with pytest.raises(ConfigError, match="at least 1"):
        few_shot(data, 0)
    with pytest.raises(ConfigError, match="num_shots must be a whole number, not 1.5"):
        few_shot(data, 1.5)


def test_repeat_repeats_in_turn():
    data = make(counts=(20, 3, 5)).few_shot(8, repeat=True)
    ones = [i for i in data.train if i.label == 1]
    assert len(ones) == 8 and ones[:3] == ones[3:6] and len(set(ones)) == 3
    assert len({i for i in data.train if i.label == 0}) == 8


def test_spread_takes_items_at_even_distances_with_both_ends():
    assert spread(range(101), 5) == [0, 25, 50, 75, 100]
    assert spread("abc", 7) == ["a", "b", "c"] and spread("abc", 3) == ["a", "b", "c"]
    assert spread("abc", 1) == ["a"] and spread("", 3) == [] and spread("abc", 0) == []


def test_split_is_stratified_disjoint_complete():
    whole = items((100, 10, 3, 2, 1))
    train, val, test = split(whole, NAMES, 0.2, 0.3, seed=0)
    assert sorted(train + val + test, key=lambda i: i.key) == sorted(whole, key=lambda i: i.key)
    count = lambda part: [sum(i.label == y for i in part) for y in range(5)]
    assert (count(train), count(val), count(test)) == ([50, 5, 1, 1, 1], [20, 2, 1, 0, 0], [30, 3, 1, 1, 0])
    assert split(whole, NAMES, 0.2, 0.3, seed=0) == (train, val, test)
    assert split(whole, NAMES, 0.2, 0.3, seed=1) != (train, val, test)
    assert split(whole, NAMES, 0.0, 0.0)[1:] == ([], [])
    for shares in ((0.5, 0.5), (-0.1, 0.2)):
        with pytest.raises(ConfigError, match="less than 1"):
            split(whole, NAMES, *shares)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_classs_split_depends_on_its_own_name_and_files_alone(seed):
    """Whichever other classes there are, in whatever order, and wherever its label then lies."""
    own = [ImageItem(Path(f"/data/cat/{i:02d}.jpg"), 0) for i in range(20)]
    other = [ImageItem(Path(f"/data/dog/{i:02d}.jpg"), 1) for i in range(13)]
    keys = lambda parts: [[item.short_key for item in part if "cat/" in item.key] for part in parts]
    alone = keys(split(own, ["cat"], seed=seed))
    for classes in (["cat", "dog"], ["dog", "cat"], ["ape", "dog", "cat"]):
        items = [ImageItem(i.path, classes.index("cat")) for i in own]
        items += [ImageItem(i.path, classes.index("dog")) for i in other]
        random.Random(seed).shuffle(items)
        assert keys(split(items, classes, seed=seed)) == alone
    assert [keys([part])[0] for part in split(own, ["fox"], seed=seed)] != alone  # classes are drawn independently
    spelled = [keys(split(own, [name], seed=seed)) for name in ("red fox", "red_fox", " red  fox")]
    assert spelled[0] == spelled[1] == spelled[2]


def test_how_accents_are_stored_changes_nothing():
    """A Mac stores them as two characters, which sort elsewhere."""
    names = ["e.jpg", "ez.jpg", "\u00e9.jpg", "f.jpg", "\u00fc.jpg", "u.jpg", "v.jpg", "z.jpg"]
    folder = lambda form: [ImageItem(Path("/data/cat") / unicodedata.normalize(form, name), 0) for name in names]
    plain = lambda items: [unicodedata.normalize("NFC", item.path.name) for item in items]
    by_key = lambda items: sorted(items, key=lambda item: item.key)
    assert plain(by_key(folder("NFD"))) != plain(by_key(folder("NFC")))
    for draw in (lambda items: split(items, ["cat"])[2], lambda items: shuffled(items, 1, "train", "cat")):
        assert plain(draw(folder("NFD"))) == plain(draw(folder("NFC")))


def test_rows_of_a_saved_data_set_count_by_their_order():
    """Row numbers grow with the rows of other classes in front; how many digits they have must not matter."""
    near = [ImageItem(Path("/data"), 0, str(row)) for row in range(5, 25)]
    far = [ImageItem(Path("/data"), 0, str(row + 95)) for row in range(5, 25)]
    for draw in (lambda items: split(items, ["cat"])[2], lambda items: shuffled(items, 1, "train", "cat")):
        assert [int(item.member) + 95 for item in draw(near)] == [int(item.member) for item in draw(far)]


@pytest.mark.parametrize("given", [(float("nan"), 0.3, 0), ("0.2", 0.3, 0), (0.2, True, 0), (0.2, 0.3, 1.0)])
def test_shares_and_seeds_that_are_none(given):
    with pytest.raises(ConfigError, match="must be"):
        split(items([6]), ["c0"], *given)
