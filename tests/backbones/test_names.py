"""Names of backbones: embedded, folder, local Hub cache, Hub; in that order, and the Hub is asked once."""

from __future__ import annotations

import shutil

import pytest
import torch

from duotune.backbones import check_device, list_devices, load_backbone
from duotune.errors import ConfigError, DataError, UnknownNameError


class Hub:
    """Stands for huggingface_hub's HTTP client: counts requests and answers with an error or a status."""

    def __init__(self, answer):
        self.answer, self.requests = answer, []

    def head(self, url, timeout):
        self.requests.append((url, timeout))
        if isinstance(self.answer, Exception):
            raise self.answer
        return type("Answer", (), {"status_code": self.answer})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """hub(answer, offline=False) -> Hub; with an empty local cache. Any other request of the libraries fails."""

    def use(answer, offline: bool = False) -> Hub:
        client = Hub(answer)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: client)
        return client

    return use


@pytest.fixture
def cached(tmp_path, tiny_clip_folder):
    """ "someone/clip" in the local Hub cache."""
    repository = tmp_path / "hub" / "models--someone--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_clip_folder, repository / "snapshots" / "abc")


@pytest.mark.parametrize(("name", "meant"), [("tinny", "tiny"), ("Tiny", "tiny"), ("tiny-clip", "tiny-glip")])
def test_a_misspelt_embedded_name_asks_nobody(hub, name, meant):
    client = hub(ConnectionError("no network"))
    with pytest.raises(UnknownNameError, match=f"unknown backbone '{name}'; did you mean '{meant}'"):
        load_backbone(name)
    assert client.requests == []


@pytest.mark.parametrize(
    ("answer", "reason"), [(ConnectionError("no route\nto host"), "no route"), (503, "status 503")]
)
def test_a_hub_that_cannot_be_reached_is_asked_once(hub, answer, reason):
    client = hub(answer)
    with pytest.raises(DataError) as caught:
        load_backbone("someone/clip")
    line = str(caught.value)
    for piece in (
        "'someone/clip'",
        "not a folder",
        "not embedded (tiny, tiny-glip)",
        "not in the local Hub cache",
        reason,
    ):
        assert piece in line
    assert "the Hub could not be reached" in line and "\n" not in line
    ((url, seconds),) = client.requests
    assert url.endswith("/someone/clip/resolve/main/config.json") and seconds <= 5


def test_offline_asks_nobody(hub):
    client = hub(200, offline=True)
    with pytest.raises(DataError, match="not in the local Hub cache, and the Hub is not asked .HF_HUB_OFFLINE"):
        load_backbone("someone/clip")
    assert client.requests == []


@pytest.mark.parametrize("name", ["./gone", "a/b/c", "/absent/folder", "so what"])
def test_what_cannot_be_a_hub_id_asks_nobody(hub, name):
    client = hub(200)
    with pytest.raises(DataError, match="not a folder.* no Hub id"):
        load_backbone(name)
    assert client.requests == []


@pytest.mark.parametrize("offline", [False, True])
def test_a_model_in_the_local_cache_needs_no_hub(hub, cached, tiny_clip, offline):
    client = hub(ConnectionError("no network"), offline)
    backbone = load_backbone("someone/clip", device="cpu")
    assert backbone.name == "someone/clip" and backbone.fingerprint() == tiny_clip.fingerprint()
    assert len(client.requests) == (0 if offline else 1)


@pytest.mark.parametrize(
    ("text", "piece"), [("[]", "names no model_type"), ("{}", "names no model_type"), ("{", "JSON")]
)
def test_a_folder_with_a_foreign_config(tmp_path, text, piece):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=piece):
        load_backbone(str(tmp_path))


def test_devices_that_are_not_there(monkeypatch, tiny_clip_folder):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert list_devices() == ["cpu"] and check_device("cpu") == "cpu" and check_device("cpu:0") == "cpu:0"
    for name in ("foo", "cuda", "cuda:0", "cpu:7", "meta", ""):
        with pytest.raises(ConfigError, match=f"no device '{name}'; this machine has cpu$"):
            check_device(name)
    with pytest.raises(ConfigError, match="no device 'foo'"):
        load_backbone(str(tiny_clip_folder), device="foo")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert check_device("cuda") == "cuda" and check_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="no device 'cuda:2'; this machine has cpu, cuda:0, cuda:1"):
        check_device("cuda:2")
