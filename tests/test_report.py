"""The report is one complete file, escapes what it shows, and says what the numbers say."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from duotune.report import (
    DetectionPart,
    DetectionRun,
    Example,
    MethodRun,
    curves_svg,
    write_metrics,
    write_report,
)
from duotune.writing import write_text

CURVE = [{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0, "eval_accuracy": 50.0}, {"epoch": 2.0, "runtime": 3}]
RUNS = [
    MethodRun("zero_shot", 41.25, 0, 812, 0.5, {"cat": 40.0, "a <b> dog": 42.5}),
    MethodRun("dpt", 61.75, 12345, 67890, 12.344, {"cat": 60.0, "a <b> dog": 63.5}, CURVE),
]
PICTURE = Image.new("RGBA", (300, 200), (200, 30, 30, 255))
EXAMPLE = Example(PICTURE, "cat", {"zero_shot": ("a <b> dog", 0.6), "dpt": ("cat", 0.97)})


class Page(HTMLParser):
    """Collects tags with their attributes, text, and whether tags are balanced."""

    VOID = {"meta", "img", "br", "path", "use"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path):
    path = write_report(
        tmp_path / "a" / "report.html", "Demo & more", {"backbone": "tiny", "shots": 16}, RUNS, [EXAMPLE]
    )
    return path.read_text(encoding="utf-8")


def test_the_page_is_complete_in_itself(page):
    parsed = Page(page)
    assert parsed.open == []
    tags = {tag for tag, _ in parsed.tags}
    assert "svg" in tags and not tags & {"script", "link", "iframe"}
    for tag, attributes in parsed.tags:
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
        assert not attributes.get("href", "#").startswith("http")
    assert "url(http" not in page and "@import" not in page


def test_the_page_shows_every_number_and_escapes_names(page):
    text = " ".join("".join(Page(page).text).split())
    for piece in ("Demo & more", "zero_shot", "41.2", "61.8", "12,345", "67,890", "12.3", "a <b> dog", "63.5", "97 %"):
        assert piece in text, piece
    assert "<b> dog" not in page
    assert re.search(r'class="best">61\.8<', page) and page.count('class="best"') == 1
    assert re.search(r'class="wrong">a &lt;b&gt; dog<', page) and re.search(r'class="right">cat<', page)
    assert re.search(r"<details>\s*<summary>", page)  # classes are collapsed


def test_pictures_are_small_copies(page):
    (uri,) = [a["src"] for t, a in Page(page).tags if t == "img"]
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (144, 96) and image.getpixel((5, 5)) == (200, 30, 30)
    assert PICTURE.size == (300, 200)  # the caller's picture is left alone


def test_curves_are_drawn_where_they_were_measured():
    assert curves_svg(RUNS[:1]) == ""
    both = curves_svg(RUNS)
    assert both.startswith("<svg") and "training loss" in both and "validation accuracy (%)" in both
    only_loss = curves_svg([MethodRun("coop", 1, 1, 1, 1, curve=[{"epoch": 1.0, "loss": 2.0}])])
    assert "training loss" in only_loss and "validation accuracy" not in only_loss
    assert curves_svg(RUNS) == both  # the same data draws the same picture


def test_a_page_without_examples_curves_or_classes(tmp_path):
    page = write_report(tmp_path / "r.html", "x", {}, [MethodRun("coop", 50, 1, 2, 3)]).read_text()
    assert "Some predictions" not in page and "<svg" not in page and "<details>" not in page and "50.0" in page


def test_metrics_json(tmp_path):
    metrics = json.loads(write_metrics(tmp_path / "metrics.json", RUNS).read_text())
    assert list(metrics) == ["classification"] and list(metrics["classification"]) == ["zero_shot", "dpt"]
    assert metrics["classification"]["dpt"] == {
        "accuracy": 61.75,
        "trainable_parameters": 12345,
        "artifact_bytes": 67890,
        "seconds": 12.34,
    }


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "x.txt", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError):
        write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_metrics_of_a_run_without_test_images_are_json(tmp_path):
    path = write_metrics(tmp_path / "metrics.json", [MethodRun("coop", float("nan"), 1, 2, 3.0)])
    refuse = lambda text: pytest.fail(f"{text} is not JSON")
    assert json.loads(path.read_text(), parse_constant=refuse)["classification"]["coop"]["accuracy"] is None


DETECTORS = [
    DetectionRun("zero_shot", 12.345, 30.0, 0, 500, 1.0),
    DetectionRun("sdpt", 45.678, None, 5120, 22000, 60.123, CURVE),
]


def test_a_detector_has_its_own_part(tmp_path):
    part = DetectionPart(
        {"data": "scenes & boxes"}, DETECTORS, [{"truth": PICTURE, "zero_shot": PICTURE, "sdpt": PICTURE}] * 2
    )
    page = write_report(tmp_path / "r.html", "Demo", {}, RUNS, detection=part).read_text(encoding="utf-8")
    parsed = Page(page)
    assert not parsed.open
    text = " ".join("".join(parsed.text).split())
    assert "scenes & boxes" in text and "45.7" in text and "12.3" in text and "5,120" in text
    (best,) = re.findall(r'class="best">([\d.]+)<', page.partition("Detection</h2>")[2])
    assert best == "45.7"
    boxes = page.partition('<table class="boxes">')[2].partition("</table>")[0]
    assert boxes.count("<img") == 6 and boxes.count("<th>") == 3
    assert "Detection</h2>" not in write_report(tmp_path / "s.html", "Demo", {}, RUNS).read_text(encoding="utf-8")


def test_metrics_of_a_detector(tmp_path):
    values = json.loads(write_metrics(tmp_path / "m.json", RUNS, DETECTORS).read_text())
    assert list(values) == ["classification", "detection"]
    assert values["detection"]["sdpt"] == {
        "AP": 45.68,
        "AP50": None,
        "trainable_parameters": 5120,
        "artifact_bytes": 22000,
        "seconds": 60.12,
    }
    assert list(json.loads(write_metrics(tmp_path / "n.json", RUNS).read_text())) == ["classification"]
    assert list(json.loads(write_metrics(tmp_path / "o.json", [], DETECTORS).read_text())) == ["detection"]
