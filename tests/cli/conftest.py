"""Running `duotune` inside the test process, and artifacts trained once for all tests of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from duotune.cli import main


@dataclass
class Ran:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error's one line. Fails if there is more or less on standard error, or if the status says success."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("duotune: error: "), self.err
        assert self.status == 2
        return lines[0]


@pytest.fixture
def duotune(capfd):
    """duotune("list", "methods") -> Ran."""

    def run(*argv: object) -> Ran:
        capfd.readouterr()
        status = main([str(word) for word in argv])
        return Ran(status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def few_steps(tiny_clip_folder, picture_folder) -> list[str]:
    """Options of a short run on the random tiny CLIP; a method and --out are still to be given."""
    options = {"--backbone": tiny_clip_folder, "--data": picture_folder, "--shots": 4, "--epochs": 2, "--batch-size": 8}
    workers = ["--training", "dataloader_num_workers=0"]
    return [str(word) for pair in options.items() for word in pair] + workers


@pytest.fixture(scope="session")
def trained(few_steps, tmp_path_factory):
    """trained("coop") -> folder of a run, made once."""
    made: dict[str, Path] = {}

    def folder(method: str) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp("runs") / method
            assert main(["train", "--method", method, "--out", str(made[method]), *few_steps]) == 0
        return made[method]

    return folder


@pytest.fixture
def left_behind():
    """left_behind(folder) -> every file below it, for "nothing half-written"."""

    def walk(folder: Path) -> list[str]:
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    return walk
