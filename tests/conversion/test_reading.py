import io
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from duotune.conversion.reading import Inert, read_archive, state_dict_of
from duotune.errors import ArtifactError


class Runs:
    """Pickles into a call of os.mkdir."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def archive(path, content: bytes, **entries: bytes):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", content)
        for name, data in entries.items():
            z.writestr(f"archive/data/{name}", data)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_reads_what_torch_saved(tmp_path, zipped):
    whole = torch.arange(24.0).view(4, 6)
    content = {
        "state_dict": OrderedDict(a=whole, b=whole[1:3, ::2], c=torch.nn.Parameter(torch.ones(2).half())),
        "epoch": 7,
        "more": [torch.tensor([1, 2]), torch.tensor(True), torch.zeros(0), torch.ones(3).bfloat16(), "text", None],
    }
    torch.save(content, tmp_path / "f", _use_new_zipfile_serialization=zipped)
    read = read_archive(tmp_path / "f")
    assert read["epoch"] == 7 and read["more"][4:] == ["text", None]
    for name, tensor in content["state_dict"].items():
        assert torch.equal(read["state_dict"][name], tensor) and read["state_dict"][name].dtype == tensor.dtype
    for theirs, ours in zip(content["more"][:4], read["more"]):
        assert torch.equal(theirs, ours) and theirs.dtype == ours.dtype


def test_runs_nothing_the_file_names(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "optimizer": Runs(tmp_path / "hit")}, tmp_path / "f")
    read = read_archive(tmp_path / "f")
    assert not (tmp_path / "hit").exists()
    assert isinstance(read["optimizer"], Inert) and torch.equal(state_dict_of(read)["w"], torch.ones(2))
    with open(tmp_path / "old", "wb") as f:
        pickle.dump(Runs(tmp_path / "hit"), f, protocol=2)
    with pytest.raises(ArtifactError, match="cannot read"):
        read_archive(tmp_path / "old")
    assert not (tmp_path / "hit").exists()
    torch.load(tmp_path / "f", weights_only=False)  # the trap is armed: a plain load springs it
    assert (tmp_path / "hit").exists()


def test_objects_that_training_leaves_in_a_file_are_inert(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    torch.save({"state_dict": {"w": torch.ones(2)}, "scheduler": {"successor": scheduler}}, tmp_path / "f")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "f", weights_only=True)  # why the reader exists
    read = read_archive(tmp_path / "f")
    assert isinstance(read["scheduler"]["successor"], Inert)
    assert list(state_dict_of(read)) == ["w"]


def test_parallel_prefix_and_tables_without_tensors():
    assert list(state_dict_of({"module.w": torch.ones(1), "epoch": 3})) == ["w"]
    assert state_dict_of({"epoch": 3}) is None
    assert state_dict_of([torch.ones(1)]) is None


def test_attributes_of_a_torchscript_module(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.BatchNorm1d(2)).eval()
    for i, script in enumerate([torch.jit.script(model), torch.jit.trace(model, torch.ones(1, 3))]):
        torch.jit.save(script, tmp_path / f"{i}.pt")
        read = state_dict_of(read_archive(tmp_path / f"{i}.pt"))
        assert {k: v.tolist() for k, v in read.items()} == {k: v.tolist() for k, v in model.state_dict().items()}


def test_damage_is_named(tmp_path):
    torch.save({"w": torch.randn(5000)}, tmp_path / "f")
    good = (tmp_path / "f").read_bytes()
    (tmp_path / "half").write_bytes(good[: len(good) // 2])
    with pytest.raises(ArtifactError, match="half.* is truncated"):
        read_archive(tmp_path / "half")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255  # inside the tensor's bytes
    (tmp_path / "flipped").write_bytes(flipped)
    with pytest.raises(ArtifactError, match="CRC"):
        read_archive(tmp_path / "flipped")
    for name, content in {"text": b"no checkpoint", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=f"cannot read .*{name}"):
            read_archive(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip", "w") as z:
        z.writestr("readme.txt", "hello")
    with pytest.raises(ArtifactError, match="without data.pkl"):
        read_archive(tmp_path / "zip")
    with pytest.raises(ArtifactError, match="no file"):
        read_archive(tmp_path / "absent")


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    class Big:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (1000,), (1,), False, OrderedDict())

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", 1000) if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(Big())
    with pytest.raises(ArtifactError, match="cannot read"):
        read_archive(archive(tmp_path / "f", buffer.getvalue(), **{"0": bytes(16)}))


def test_a_pickle_cannot_change_the_reader(tmp_path):
    # BUILD with a slot state on the function that rebuilds tensors, as an attack on restricted unpicklers does
    code = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x05\x00\x00\x00_evil}s\x86b."
    with pytest.raises(ArtifactError):
        read_archive(archive(tmp_path / "f", code))
