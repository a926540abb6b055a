"""The wheel and the source archive: what is in them, how large they are, and that what they install runs.

Both are built with hatchling, the project's build backend, which needs no network.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="pip install duotune[test]")

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "duotune"
LARGEST = 60e6  # bytes of a wheel
SOURCE_ENTRIES = {
    *("src", "tests", "docs", "benchmarks", "examples", "scripts"),
    *("Makefile", "constraints.txt", "mkdocs.yml", "pyproject.toml", ".gitignore", "PKG-INFO"),
    *("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "THIRD_PARTY_NOTICES.md"),
}
PRIVATE = re.compile(rb"(?<![\w.~-])/(?:work|root|home|Users)/\w")  # a path of somebody's machine


def build(source: Path, out: Path, *targets: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *targets]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def source(built, tmp_path_factory) -> Path:
    """The source archive, unpacked."""
    (path,) = built.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def package_files() -> set[str]:
    found = {p.relative_to(ROOT / "src").as_posix() for p in PACKAGE.rglob("*") if p.is_file()}
    return {name for name in found if "__pycache__" not in name}


def test_the_wheel_holds_the_package_its_licence_and_nothing_else(wheel):
    assert wheel.stat().st_size <= LARGEST
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        inside = {name for name in names if name.startswith("duotune/")}
        (about,) = {name.partition("/")[0] for name in names - inside}
        metadata = message_from_bytes(archive.read(f"{about}/METADATA"))
        for name in ("LICENSE", "THIRD_PARTY_NOTICES.md"):
            assert archive.read(f"{about}/licenses/{name}") == (ROOT / name).read_bytes()
        assert "duotune = duotune.cli:main" in archive.read(f"{about}/entry_points.txt").decode()
    assert inside == package_files()
    assert {"duotune/py.typed", "duotune/report.html.j2"} <= inside
    for pattern in ("assets/tasks/*.zip", "assets/detection/*.zip", "assets/*/*.safetensors", "recipes/*.yaml"):
        assert {p.relative_to(PACKAGE.parent).as_posix() for p in PACKAGE.glob(pattern)} <= inside
        assert list(PACKAGE.glob(pattern)), pattern
    import duotune

    assert metadata["Version"] == duotune.__version__ and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10" and "torch<2.15,>=2.11" in metadata.get_all("Requires-Dist")


def test_the_source_archive_makes_the_same_wheel(source, wheel, tmp_path):
    assert {path.name for path in source.iterdir()} == SOURCE_ENTRIES
    build(source, tmp_path, "-t", "wheel")
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        contents = [{info.filename: info.CRC for info in archive.infolist()} for archive in (one, other)]
    assert contents[0] == contents[1]


def test_nothing_of_a_machine_is_inside(source):
    """Texts name no path of the machine that made them; no cache, key or editor's file is carried along."""
    files = [path for path in source.rglob("*") if path.is_file()]
    assert len(files) > 300
    unwanted = {path.name for path in files if path.suffix in (".pyc", ".log", ".tmp", ".orig", ".env", ".pem")}
    hidden = {path.name for path in files if path.name.startswith(".")} - {".gitignore"}
    assert not unwanted | hidden
    for path in files:
        if path.suffix not in (".zip", ".safetensors", ".npz", ".pt"):
            found = PRIVATE.search(path.read_bytes())
            assert found is None, f"{path.relative_to(source)}: {found[0]}"


def run(python: Path | str, *arguments: str, home: Path, **extra: str) -> str:
    """`python -m duotune ARGUMENTS` in an empty folder, with an empty home, no network and nothing else on the path."""
    work = home / "elsewhere"
    work.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    environment = {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", **extra}
    command = [str(python), "-m", "duotune", *arguments]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_unpacked_wheel_runs(wheel, tmp_path):
    """The wheel's files alone: the command, its tables, recipes and embedded data are found in them."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed, home = str(tmp_path / "installed"), tmp_path / "home"
    code = "import duotune; print(duotune.__file__)"
    environment = {**os.environ, "PYTHONPATH": installed}
    where = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(installed)
    assert "tiny_dpt" in run(sys.executable, "list", "recipes", home=home, PYTHONPATH=installed)
    assert "tiny-effects" in run(sys.executable, "list", "datasets", home=home, PYTHONPATH=installed)
    assert run(sys.executable, "--version", home=home, PYTHONPATH=installed).split()[1].rstrip(",") in wheel.name
    assert [path.name for path in home.iterdir()] == ["elsewhere"] and not list((home / "elsewhere").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_what_pip_installs_runs_the_demo(kind, built, tmp_path):
    """In an environment of its own, which borrows nothing but the folder of the dependencies."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (own / "dependencies.pth").write_text(
        "\n".join(borrowed) + "\n"
    )  # .pth files below are not read: no editable install
    (package,) = built.glob(kind)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", str(package)]
    subprocess.run(pip, check=True)
    home = tmp_path / "home"
    code = "import duotune; print(duotune.__file__)"
    where = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(own))
    run(python, "demo", "--epochs", "1", home=home)
    found = home / "elsewhere" / "runs" / "demo"
    assert (found / "report.html").exists()
    assert set(json.loads((found / "metrics.json").read_text())) == {"classification", "detection"}
