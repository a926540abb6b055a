"""A few hundred of the inputs of scripts/fuzz/run.py, and that its watchdog sees what it is there for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "fuzz"
INPUTS = {"image": 60, "json": 60, "yaml": 25, "csv": 25, "artifact": 30, "folder": 24, "pickle": 40, "checkpoint": 12}


@pytest.fixture(scope="module")
def campaign():
    """scripts/fuzz/run.py, whose neighbours have names that others may have as well."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    try:
        import run

        yield run
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and str(SCRIPTS) in str(sys.modules[name].__file__):
                del sys.modules[name]


def test_every_kind_is_tried(campaign):
    assert set(INPUTS) == set(campaign.TARGETS) == set(campaign.SHARES)


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_are_read_or_refused(campaign, kind):
    import watchdog

    failures: list[str] = []
    counts = campaign.fuzz(kind, 2, list(range(INPUTS[kind])), failures.append, watchdog.alone)
    assert not failures
    assert sum(counts.values()) == INPUTS[kind] and counts["refused"] > 0


def test_the_watchdog_sees_each_fault(campaign, monkeypatch, tmp_path):
    import watchdog

    from duotune.errors import DataError

    monkeypatch.setattr(watchdog, "SECONDS", 3.0)
    monkeypatch.setattr(watchdog, "MEMORY_KB", 150 * 2**10)

    def run(index: int) -> str | None:
        if index == 1:
            raise KeyError("unexpected")
        if index == 2:
            raise DataError("x " * 300)
        if index == 3:
            return "a wrong number"
        if index == 4:
            os._exit(3)
        if index == 5:
            while True:
                pass
        if index == 6:
            assert len(b"1" * (300 * 2**20))
        if index == 7:
            raise DataError("refused")
        return None

    found = {index: verdict for index, verdict in watchdog.watched(run, list(range(8)), str(tmp_path))}
    assert [found[i].kind for i in range(8)] == ["ok", *["FAILED"] * 6, "refused"]
    words = {1: "KeyError", 2: "a line of", 3: "a wrong number", 4: "ended", 5: "still busy", 6: "GB of memory"}
    assert all(word in found[i].text for i, word in words.items()), found


def test_code_that_runs_is_seen(campaign, monkeypatch):
    class Careless(campaign.Target):
        def run(self, rng, folder):
            import pickle

            from targets import _evil

            pickle.loads(pickle.dumps(_evil(rng, os.environ["DUOTUNE_CANARY"])))

    import watchdog

    monkeypatch.setitem(campaign.TARGETS, "image", Careless)
    failures: list[str] = []
    campaign.fuzz("image", 1, [0, 1], failures.append, watchdog.alone)
    assert all("code of the file ran" in failure for failure in failures) and len(failures) == 2
