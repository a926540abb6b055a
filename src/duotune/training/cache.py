"""Frozen image features on disk, shared by epochs, runs and processes.

    cache_dir/
      hashes.sqlite                       path, size, mtime -> SHA-256 of the image's bytes, so each is read for it once
      <namespace>/<random>.safetensors    keys (n, 16) uint8, features (n, E) float32, checksum (32,) uint8

A namespace is a digest of everything that is the same for all images: the backbone's fingerprint and
precision, and the transform. A key is a digest of an image's bytes and of the view it is shown in.

- Bounded: beyond `max_bytes` the shards least recently used are deleted.
- Corruption is detected: a shard whose checksum does not match is deleted, counted, and computed anew. One that the
  system does not give at the moment is passed over and left alone.
- Concurrent writers are safe: a shard is written beside its place and renamed, under a name of its own;
  readers take a shard that has just been deleted for a miss.
- A cache that cannot be written (no space, read-only) costs time, not the run: it warns once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from ..data.base import ImageItem
from ..data.images import read_bytes
from ..errors import ConfigError, DataError
from ..writing import write_bytes

logger = logging.getLogger(__name__)

KEY_BYTES = 16
ROWS_PER_SHARD = 1 << 16
STALE_SECONDS = 3600  # a half-written file this old belongs to a process that is gone


@dataclass
class CacheStatistics:
    """hits, misses: images found and not found. corrupt: shards thrown away. evicted: shards deleted for space.

    bytes_read, bytes_written: of shards. bytes_on_disk: of all shards when last counted.
    """

    hits: int = 0
    misses: int = 0
    corrupt: int = 0
    evicted: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_on_disk: int = 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def __str__(self) -> str:
        return (
            f"feature cache: {self.hits} hits, {self.misses} misses, {self.corrupt} corrupt shards, "
            f"{self.evicted} evicted, {self.bytes_on_disk / 1e6:.1f} MB on disk"
        )


class FeatureCache:
    """Float32 rows by key, in a few shards; see the module's docstring.

    Args:
        folder: made if absent.
        max_bytes: limit of all shards together.

    Attributes:
        statistics: of this object's life.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 4 * 10**9):
        if max_bytes <= 0:
            raise ConfigError(f"max_bytes must be above 0, not {max_bytes}")
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.statistics = CacheStatistics()
        self._warned = self._told = False

    @staticmethod
    def namespace(*parts: Any) -> str:
        """The folder of features that share `parts` (fingerprint, precision, transform, ...)."""
        return _digest(*parts).hex()[:24]

    @staticmethod
    def key(content: bytes, *parts: Any) -> bytes:
        """Key of an image with this content hash, shown as `parts` say (seed and number of the view, ...)."""
        return _digest(content.hex(), *parts)[:KEY_BYTES]

    def get(self, namespace: str, keys: Sequence[bytes]) -> tuple[np.ndarray | None, np.ndarray]:
        """Features of `keys`.

        Returns:
            rows (n, E) float32 with zeros where nothing was found (None if nothing was found at all), and
            found (n,) bool.
        """
        found = np.zeros(len(keys), dtype=bool)
        rows: np.ndarray | None = None
        wanted: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            wanted.setdefault(key, []).append(i)
        for path in self._shards(namespace):
            if not wanted:
                break
            shard_keys = self._read_keys(path)
            if shard_keys is None or wanted.keys().isdisjoint(shard_keys):
                continue
            features = self._read_features(path)
            if features is None:
                continue
            rows = np.zeros((len(keys), features.shape[1]), dtype=np.float32) if rows is None else rows
            for row, key in enumerate(shard_keys):
                for i in wanted.pop(key, ()):
                    rows[i], found[i] = features[row], True
        self.statistics.hits += int(found.sum())
        self.statistics.misses += int((~found).sum())
        return rows, found

    def put(self, namespace: str, keys: Sequence[bytes], features: np.ndarray) -> None:
        """Store rows (n, E); a failure to write is a warning, not an error."""
        try:
            for start in range(0, len(keys), ROWS_PER_SHARD):
                chunk = slice(start, start + ROWS_PER_SHARD)
                self._write_shard(namespace, keys[chunk], np.ascontiguousarray(features[chunk], dtype=np.float32))
            self._evict()
        except OSError as error:
            self._cannot_write(error)

    def content_hashes(self, items: Sequence[ImageItem]) -> list[bytes | None]:
        """SHA-256 of every item's bytes; None if they cannot be read. Remembered by path, size and mtime."""
        with _HashMemory(self.folder, self._cannot_write) as memory:
            return [memory.hash(item) for item in items]

    def _cannot_write(self, error: Exception) -> None:
        if not self._warned:
            reason = getattr(error, "strerror", None) or error
            logger.warning("features are not kept: cannot write to the feature cache %s (%s)", self.folder, reason)
        self._warned = True

    # shards

    def _shards(self, namespace: str) -> list[Path]:
        return sorted((self.folder / namespace).glob("*.safetensors"))

    def _read_keys(self, path: Path) -> list[bytes] | None:
        try:
            with safe_open(path, framework="numpy") as file:
                return [bytes(k) for k in file.get_tensor("keys")]
        except FAULTS as error:
            self._pass_over(path, error)
            return None

    def _read_features(self, path: Path) -> np.ndarray | None:
        try:
            payload = path.read_bytes()
            tensors = from_bytes(payload)
            keys, features = tensors["keys"], tensors["features"]
            if _checksum(keys, features) != tensors["checksum"].tobytes():
                raise ValueError("checksum does not match")
        except FAULTS as error:
            self._pass_over(path, error)
            return None
        mark_used(path)
        self.statistics.bytes_read += len(payload)
        return features

    def _pass_over(self, path: Path, error: Exception) -> None:
        if proves_broken(error):
            logger.warning("the feature cache's %s is corrupt (%s); its features are computed anew", path, error)
            self.statistics.corrupt += 1
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        elif not isinstance(error, FileNotFoundError) and not self._told:  # another process may have deleted it
            self._told = True
            logger.warning("cannot read %s (%s); its features are computed anew, the file is left alone", path, error)

    def _write_shard(self, namespace: str, keys: Sequence[bytes], features: np.ndarray) -> None:
        packed = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY_BYTES)
        checksum = np.frombuffer(_checksum(packed, features), dtype=np.uint8)
        payload = to_bytes({"keys": packed, "features": features, "checksum": checksum})
        target = self.folder / namespace / f"{uuid.uuid4().hex}.safetensors"
        write_bytes(target, payload, lasting=False)
        self.statistics.bytes_written += len(payload)

    def _evict(self) -> None:
        shards = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process was faster
            if path.suffix == ".safetensors":
                shards.append((status.st_mtime_ns, status.st_size, path))
            elif path.suffix == ".part" and time.time() - status.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in shards)
        for _, size, path in sorted(shards, key=lambda s: s[0]):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            self.statistics.evicted += 1
            total -= size
        self.statistics.bytes_on_disk = total


FAULTS = (SafetensorError, OSError, ValueError, KeyError, MemoryError)
"""What reading a kept file may raise."""


def proves_broken(error: Exception) -> bool:
    """Whether it is the file's content that cannot be used; rights, memory or a bad disk say nothing of that."""
    return not isinstance(error, (OSError, MemoryError)) and "os error" not in str(error)


def mark_used(path: Path) -> None:
    """Set a kept file's time to now: the least recently used go first. A file of somebody else's stays as it is."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _digest(*parts: Any) -> bytes:
    return hashlib.sha256("\0".join(str(p) for p in parts).encode(errors="surrogatepass")).digest()


def _checksum(keys: np.ndarray, features: np.ndarray) -> bytes:
    digest = hashlib.sha256(np.ascontiguousarray(keys).tobytes())
    digest.update(np.ascontiguousarray(features))
    return digest.digest()


class _HashMemory:
    """Content hashes by path, size and mtime. If the database cannot be used, nothing is remembered."""

    def __init__(self, folder: Path, cannot_write: Callable[[Exception], None]):
        self.path, self.db, self.new, self.cannot_write = folder / "hashes.sqlite", None, [], cannot_write

    def __enter__(self) -> _HashMemory:
        for _ in range(2):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.db = sqlite3.connect(self.path, timeout=30)
                self.db.execute(
                    "CREATE TABLE IF NOT EXISTS hashes (key TEXT PRIMARY KEY, size INT, mtime INT, sha BLOB)"
                )
                return self
            except sqlite3.OperationalError as error:  # locked or not writable: leave the file alone
                if "locked" in str(error):
                    logger.warning("%s is locked by another process; images are hashed anew", self.path)
                else:
                    self.cannot_write(error)
                break
            except sqlite3.DatabaseError:  # corrupt: it is only a memory, start a new one
                self._close()
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
            except OSError as error:
                self.cannot_write(error)
                break
        self._close()
        return self

    def hash(self, item: ImageItem) -> bytes | None:
        try:
            status = item.path.stat()
            name = str(item.path.absolute()) + (f"::{item.member}" if item.member else "")
            known = self._known(name, status)
            if known is not None:
                return known
            sha = hashlib.sha256(read_bytes(item)).digest()
        except (OSError, DataError):
            return None
        self.new.append((name, status.st_size, status.st_mtime_ns, sha))
        return sha

    def _known(self, key: str, status: os.stat_result) -> bytes | None:
        if self.db is None:
            return None
        try:
            row = self.db.execute("SELECT size, mtime, sha FROM hashes WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error:
            return None
        return row[2] if row and row[:2] == (status.st_size, status.st_mtime_ns) else None

    def __exit__(self, *_) -> None:
        try:
            if self.db is not None and self.new:
                self.db.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", self.new)
                self.db.commit()
        except sqlite3.Error as error:
            self.cannot_write(error)
        finally:
            self._close()

    def _close(self) -> None:
        if self.db is not None:
            self.db.close()
        self.db = None
