"""Code that stands twice: pylint's comparison of lines over all Python files of the repository.

    python scripts/checks/duplicates.py           prints what is alike; exit status 1 if there is anything

Imports, signatures, comments and docstrings do not count: an adapter has to repeat what it overrides. They are blanked
here and not by pylint, which would follow every import into torch for it and take minutes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
from pathlib import Path

from pylint.checkers.symilar import Symilar

ROOMS = ("src/duotune", "benchmarks", "examples", "scripts", "tests")
LINES = 6


def without_imports_and_signatures(text: str) -> str:
    """`text` with those lines blank; line numbers stay."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            first, last = node.lineno, node.end_lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first, last = node.lineno, max(node.lineno, node.body[0].lineno - 1)
        else:
            continue
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(lines)


def main() -> int:
    """1 if at least `LINES` lines stand twice, else 0."""
    files = sorted(path for room in ROOMS for path in Path(room).rglob("*.py"))
    if not files:
        raise SystemExit(f"no Python file under {', '.join(ROOMS)}; run from the root of the repository")
    alike = Symilar(min_lines=LINES, ignore_comments=True, ignore_docstrings=True)
    for path in files:
        alike.append_stream(str(path), io.StringIO(without_imports_and_signatures(path.read_text(encoding="utf-8"))))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        alike.run()
    found = re.search(r"duplicates=(\d+)", said.getvalue())
    if found and found[1] == "0":
        return 0
    print(said.getvalue())
    return 1


if __name__ == "__main__":
    sys.exit(main())
