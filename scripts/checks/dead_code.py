"""Code that nothing reaches: vulture, told which names the tables reach ("methods.sdpt:SDPT" is a string to it).

    python scripts/checks/dead_code.py            settings and the names that others call: pyproject.toml, [tool.vulture]

Tests are left out on purpose: what tests alone use is as dead as what nobody does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from duotune.backbones import BACKBONES
from duotune.data import DATASETS
from duotune.data.detection import DETECTION_DATASETS
from duotune.methods import DETECTION_METHODS, METHODS

TABLES = (BACKBONES, METHODS, DETECTION_METHODS, DATASETS, DETECTION_DATASETS)
ROOMS = ("src/duotune", "benchmarks", "examples", "scripts")


def main() -> int:
    """vulture's exit status: 0 if everything is reached."""
    reached = [table.where(name).rpartition(":")[2] for table in TABLES for name in table]
    if not reached:
        raise SystemExit("the tables name nothing; expected the attributes of methods, backbones and data sets")
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "names_in_tables.py"
        names.write_text("\n".join(reached) + "\n")
        return subprocess.call([sys.executable, "-m", "vulture", *ROOMS, str(names)])


if __name__ == "__main__":
    sys.exit(main())
