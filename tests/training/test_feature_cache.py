"""The feature cache: what goes in comes out, corruption and other processes included."""

import errno
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from duotune.data.base import ImageItem
from duotune.errors import ConfigError
from duotune.training.cache import FeatureCache
from duotune.training.detection_features import MapStore


def some(n, width=8, seed=0):
    random = np.random.default_rng(seed)
    return [FeatureCache.key(bytes([seed, i % 256, i // 256])) for i in range(n)], random.normal(
        size=(n, width)
    ).astype(np.float32)


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    keys, rows = some(10)
    cache = FeatureCache(tmp_path)
    cache.put("space", keys[:6], rows[:6])
    cache.put("space", keys[6:], rows[6:])
    order = [7, 0, 3, 3, 9]
    got, found = FeatureCache(tmp_path).get("space", [keys[i] for i in order])
    assert found.all()
    np.testing.assert_array_equal(got, rows[order])
    assert got.dtype == np.float32


def test_misses_are_marked_and_counted_and_namespaces_are_apart(tmp_path):
    keys, rows = some(4)
    cache = FeatureCache(tmp_path)
    cache.put("space", keys[:2], rows[:2])
    got, found = cache.get("space", keys)
    assert found.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(got[2:], 0)
    assert (cache.statistics.hits, cache.statistics.misses) == (2, 2)
    assert cache.get("elsewhere", keys)[0] is None


def test_keys_depend_on_content_and_view():
    made = {FeatureCache.key(c, *v) for c in (b"a", b"b") for v in ((), (1, 0, "x"), (1, 1, "x"), (2, 0, "x"))}
    assert len(made) == 8
    assert FeatureCache.namespace("f", "float32", "t") != FeatureCache.namespace("f", "bfloat16", "t")


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign", "empty"])
def test_a_corrupt_shard_is_thrown_away_and_counted(tmp_path, damage):
    keys, rows = some(50)
    cache = FeatureCache(tmp_path)
    cache.put("space", keys, rows)
    (shard,) = (tmp_path / "space").iterdir()
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[-100] ^= 1  # one bit, inside a tensor
    elif damage == "truncate":
        content = content[:-64]
    elif damage == "foreign":
        content = bytearray(b"not a safetensors file at all")
    else:
        content = bytearray()
    shard.write_bytes(content)
    fresh = FeatureCache(tmp_path)
    got, found = fresh.get("space", keys)
    assert not found.any()
    assert fresh.statistics.corrupt == 1 and not shard.exists()
    fresh.put("space", keys, rows)
    np.testing.assert_array_equal(fresh.get("space", keys)[0], rows)


def test_shards_least_recently_used_go_first(tmp_path):
    sets = [some(100, seed=s) for s in range(4)]
    size = len(sets[0][0]) * (16 + 32)
    cache = FeatureCache(tmp_path, max_bytes=int(3.5 * size))
    paths = []
    for number, (keys, rows) in enumerate(sets[:3]):
        cache.put("space", keys, rows)
        (new,) = set((tmp_path / "space").iterdir()) - set(paths)
        paths.append(new)
        os.utime(new, (1000 + number, 1000 + number))
    cache.get("space", sets[0][0])  # the oldest is used again
    cache.put("space", *sets[3])
    assert [bool(cache.get("space", keys)[1].all()) for keys, _ in sets] == [True, False, True, True]
    assert cache.statistics.evicted == 1
    assert 0 < cache.statistics.bytes_on_disk <= cache.max_bytes
    assert cache.statistics.bytes_on_disk == sum(p.stat().st_size for p in (tmp_path / "space").iterdir())


WRITER = """
import sys
import numpy as np
from duotune.training.cache import FeatureCache
cache = FeatureCache(sys.argv[1])
for i in range(20):
    keys = [FeatureCache.key(bytes([i, j])) for j in range(10)]
    cache.put("space", keys, np.full((10, 4), i, dtype=np.float32))
    rows, found = cache.get("space", keys)
    assert found.all() and (rows == i).all() and cache.statistics.corrupt == 0
"""


def test_several_processes_write_at_once(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(3)]
    assert [w.wait(timeout=60) for w in writers] == [0, 0, 0]
    cache = FeatureCache(tmp_path)
    for i in range(20):
        rows, found = cache.get("space", [FeatureCache.key(bytes([i, j])) for j in range(10)])
        assert found.all() and (rows == i).all()
    assert cache.statistics.corrupt == 0
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = FeatureCache(blocked)
    keys, rows = some(3)
    cache.content_hashes([ImageItem(tmp_path / "a.png", 0)])
    cache.put("space", keys, rows)
    cache.put("space", keys, rows)
    (warning,) = [r.message for r in caplog.records]
    assert warning.startswith(f"features are not kept: cannot write to the feature cache {blocked} (")
    assert not cache.get("space", keys)[1].any()


def test_content_is_hashed_once_per_state_of_the_file(tmp_path, monkeypatch):
    import duotune.training.cache as module

    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path)
    reads = []
    original = module.read_bytes
    monkeypatch.setattr(module, "read_bytes", lambda item: reads.append(item) or original(item))
    cache = FeatureCache(tmp_path / "cache")
    items = [ImageItem(path, 0), ImageItem(tmp_path / "absent.png", 0)]
    first = cache.content_hashes(items)
    assert first[1] is None and len(reads) == 1
    assert FeatureCache(tmp_path / "cache").content_hashes(items) == first and len(reads) == 1
    Image.new("RGB", (4, 4), "blue").save(path)
    os.utime(path, ns=(1, 1))  # whatever the clock's resolution
    second = cache.content_hashes(items)
    assert len(reads) == 2 and second[0] != first[0]


def test_a_corrupt_hash_memory_is_started_anew(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path)
    cache = FeatureCache(tmp_path / "cache")
    expected = cache.content_hashes([ImageItem(path, 0)])
    (tmp_path / "cache" / "hashes.sqlite").write_bytes(b"scrambled" * 100)
    assert cache.content_hashes([ImageItem(path, 0)]) == expected
    db = sqlite3.connect(tmp_path / "cache" / "hashes.sqlite")
    assert db.execute("SELECT count(*) FROM hashes").fetchone() == (1,)
    db.close()


def test_a_limit_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="max_bytes"):
        FeatureCache(tmp_path, 0)


NOT_THE_FILE = {
    "rights": PermissionError(errno.EACCES, "Permission denied"),
    "open files": OSError(errno.EMFILE, "Too many open files"),
    "disk": OSError(errno.EIO, "Input/output error"),
    "memory": MemoryError(),
    "mapping": SafetensorError("Error while mapping: Cannot allocate memory (os error 12)"),
}


@pytest.mark.parametrize("fault", NOT_THE_FILE)
@pytest.mark.parametrize("call", ["_checksum", "safe_open"])
def test_what_proves_nothing_of_the_file_leaves_it_alone(tmp_path, monkeypatch, caplog, fault, call):
    """The same of shards and of feature maps: not found while it lasts, there again afterwards, one warning."""
    import duotune.training.cache as cache_module
    import duotune.training.detection_features as maps_module

    keys, rows = some(5)
    cache, store = FeatureCache(tmp_path / "features"), MapStore(10**6, tmp_path / "maps")
    cache.put("space", keys, rows)
    maps = [torch.ones(2, 3, 3), torch.zeros(2, 2, 2)]
    assert store.put("space/a", maps) and store.put("space/b", maps)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 3

    def fail(*_, **__):
        raise NOT_THE_FILE[fault]

    with monkeypatch.context() as patch:
        for module in (cache_module, maps_module):
            patch.setattr(module, call, fail)
        assert not cache.get("space", keys)[1].any() and not cache.get("space", keys)[1].any()
        assert store.get("space/a") is None and store.get("space/b") is None
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == files
    assert cache.statistics.corrupt == 0 and store.corrupt == 0
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and all("the file is left alone" in line for line in told)
    assert cache.get("space", keys)[1].all()
    assert all(torch.equal(a, b) for a, b in zip(store.get("space/a"), maps))


def test_a_file_whose_time_cannot_be_set_is_used_all_the_same(tmp_path, monkeypatch):
    """As in a cache that belongs to somebody else, or on a disk mounted read-only."""
    keys, rows = some(5)
    cache, store = FeatureCache(tmp_path / "features"), MapStore(10**6, tmp_path / "maps")
    cache.put("space", keys, rows)
    store.put("space/a", [torch.ones(2, 3, 3)])

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get("space", keys)[1].all() and torch.equal(store.get("space/a")[0], torch.ones(2, 3, 3))
