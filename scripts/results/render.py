"""Write docs/results.md, its pictures and the tables of docs/benchmarks.md from docs/data: what `make results` runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pages import DOCS, pages  # noqa: E402


def main() -> None:
    written = pages()
    for old in (DOCS / "figures").glob("*.svg"):
        if f"figures/{old.name}" not in written:
            old.unlink()
    for name, text in written.items():
        path = DOCS / name
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_text(text, "utf-8")
        os.replace(beside, path)
        print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
