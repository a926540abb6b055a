"""Checkpoints of others that would take all memory, or whose tensors are none a model has."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import resource
import struct
import zipfile

import pytest
import torch

from duotune.conversion.openai_clip import convert_openai_clip, read_bpe
from duotune.conversion.reading import read_archive, state_dict_of
from duotune.conversion.sdpt import import_sdpt
from duotune.errors import ArtifactError
from duotune.models.glip.conversion import read_checkpoint


@pytest.fixture(autouse=True)
def _little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "more than 1 GB"


def packed(path, code: bytes, compression=zipfile.ZIP_STORED, **members: bytes):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", code)
        archive.writestr("a/version", "3")
        for name, content in members.items():
            archive.writestr(f"a/data/{name}", content)
    return path


def refused(call, *words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        call()
    line = str(caught.value)
    assert line.isprintable() and len(line) < 400
    assert all(word in line for word in words), line


@pytest.mark.parametrize("index", [2**28, 2**31, 2**32 - 1])
def test_a_memo_index_beyond_the_pickle(tmp_path, index):
    code = b"\x80\x02}r" + struct.pack("<I", index) + b"."
    refused(lambda: read_archive(packed(tmp_path / "x.pt", code)), "numbers an object", str(index))


def test_a_pickle_that_is_deep(tmp_path):
    code = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    state = state_dict_of(read_archive(packed(tmp_path / "x.pt", code)))
    assert state is None


@pytest.mark.parametrize("zipped", [True, False])
def test_one_value_that_is_named_billions_of_times(tmp_path, zipped):
    path = tmp_path / "x.pth"
    table = {"w": torch.zeros(1).expand(2**32), "b": torch.ones(2)}
    torch.save({"state_dict": table, "model": table}, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        refused(lambda: read_archive(path), "4294967296 values")
    else:
        assert list(state_dict_of(read_archive(path))) == ["b"]
    refused(lambda: read_checkpoint(path), "'w'")


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_archives_that_unpack_to_gigabytes(tmp_path, member):
    block, path = bytes(2**24), tmp_path / "x.pt"
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        code = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in {"data.pkl": code, "version": b"3", "data/0": bytes(16)}.items():
            if name != member:
                archive.writestr(f"a/{name}", content)
        with archive.open(f"a/{member}", "w", force_zip64=True) as file:
            for _ in range(40):
                file.write(block)
    for read in (read_archive, read_checkpoint):
        refused(lambda read=read: read(path), "unpacked; the limit is")


def test_a_vocabulary_that_unpacks_to_gigabytes(tmp_path):
    path = tmp_path / "bpe.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(40):
            file.write(bytes(2**24))
    refused(lambda: read_bpe(path, 49408), "67,108,864 bytes unpacked")
    path.write_bytes(path.read_bytes()[:5000])
    refused(lambda: read_bpe(path, 49408), "cannot read the vocabulary")


@pytest.mark.parametrize(
    "odd", [torch.zeros(()), torch.zeros(1, 2, 1, 2, 1), torch.zeros(0), torch.zeros(3, 3)], ids=str
)
def test_tensors_of_shapes_that_no_model_has(tmp_path, odd):
    names = ["visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight", "text_projection"]
    names += ["positional_embedding", "visual.proj", "visual.class_embedding", "logit_scale", "ln_final.weight"]
    for i, name in enumerate(names):
        state = {key: torch.rand(8, 3, 4, 4) if "conv1" in key else torch.rand(4, 4) for key in names}
        torch.save({**state, name: odd}, tmp_path / f"{i}.pt")
        refused(lambda i=i: convert_openai_clip(tmp_path / f"{i}.pt", tmp_path / "out", tokenizer=tmp_path))
    key = "rpn.head.dyhead_tower.0.b_attn.attn.cpt_input"
    torch.save({"model": {key: odd}}, tmp_path / "s.pth")
    refused(lambda: import_sdpt(tmp_path / "s.pth", "tiny-glip", ["cat"]))


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_archive, read_checkpoint, lambda path: read_bpe(path, 600)):
        refused(lambda read=read: read(tmp_path / "pipe"), "a named pipe")


def test_plain_pickles_of_every_protocol_call_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        code = pickle.dumps({"state_dict": Evil()}, protocol)
        (tmp_path / "plain").write_bytes(code)
        for read in (read_archive, read_checkpoint):
            refused(lambda read=read: read(tmp_path / "plain"))
        assert state_dict_of(read_archive(packed(tmp_path / "x.pt", code))) is None
    assert not (tmp_path / "ran").exists()
