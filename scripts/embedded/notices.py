"""Write THIRD_PARTY_NOTICES.md: whose work is inside the embedded files, and under which licence.

python notices.py --out ../../THIRD_PARTY_NOTICES.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from packages import EMOJIBASE, PACKAGES

LINKS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "https://opensource.org/license/mit",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
}
MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to
whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def text() -> str:
    lines = [
        "# Third-party notices",
        "",
        "duotune itself is under Apache-2.0 (LICENSE). It contains no other project's source code. The files below "
        "`src/duotune/assets` are made from other people's work by the scripts in `scripts/embedded`:",
        "",
        "- `assets/tasks/*.zip`, `assets/detection/*.zip`: small pictures of the drawings below, changed (drawn at 64 px, cropped, scaled, "
        "rotated, recoloured, degraded, put on backgrounds). `dataset.json` in each archive lists the packages its "
        "pictures come from.",
        "- `assets/tiny-clip`, `assets/tiny-glip`: weights trained on such pictures, and tokenizers trained on the names of emoji.",
        "",
        "Share-alike packages were left out. The drawings come from these `@iconify-json` packages:",
        "",
        "| package | version | author | licence |",
        "|---|---|---|---|",
        *(f"| {p.npm} | {p.version} | {p.author} | [{p.licence}]({LINKS[p.licence]}) |" for p in PACKAGES),
        "",
        f"Names and tags of emoji: `{EMOJIBASE[0]}` {EMOJIBASE[1]}, {EMOJIBASE[3]}, [MIT]({LINKS['MIT']}).",
        "",
        "The vectors that the concepts' names were given while the model was trained were computed with "
        "all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0); neither its weights nor its vectors are shipped.",
        "",
        "## The MIT licence, for the packages above that are under it",
        "",
        "\n".join(f"Copyright (c) {p.author} ({p.npm})  " for p in PACKAGES if p.licence == "MIT"),
        f"Copyright (c) {EMOJIBASE[3]} ({EMOJIBASE[0]})",
        "",
        MIT,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.parse_args().out.write_text(text())
