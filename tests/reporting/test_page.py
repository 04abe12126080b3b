from __future__ import annotations

from html.parser import HTMLParser

import pytest

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.errors import UsageError
from qtoolkit.reporting import page
from qtoolkit.reporting.markdown import scorecard_markdown
from qtoolkit.reporting.page import scorecard_html, write_report

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Checks that tags close in order; keeps tables, headings, tags with attributes, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.headings: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", dict(attrs).get("class") or ""))
        elif tag in ("h1", "h2"):
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        inside = set(self.stack)
        if inside & {"script", "style"}:
            return
        self.text += data
        if inside & {"td", "th"}:
            text, kind = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, kind)
        elif inside & {"h1", "h2"}:
            self.headings[-1] += data

    def sources(self) -> list[str]:
        return [value for _, attrs in self.tags for name in ("src", "href") if (value := attrs.get(name))]


def test_page_holds_the_whole_report(card, sensitivity, plan):
    found = Page(scorecard_html(card(), sensitivity, plan))
    assert found.headings == [
        "net.onnx on ort-cpu", "Accuracy against latency", "Most sensitive layers", "Layers at 16 bit", "Conditions",
        "Machine and software", "Files", "How to read this",
    ]  # fmt: skip
    scorecard, ranking, files = found.tables
    assert [text for text, _ in scorecard[3]] == [
        "mixed", "8/8", "22/72 (31 % of MACs)", "4.62", "388.2", "3.46", "53.28", "81.20", "57.00", "98.9", "92.32",
        "33.1", "35.1", "0.73 (0.70–0.76)",
    ]  # fmt: skip
    assert [row[1][0] for row in ranking[1:]] == ["/head/Conv", "/stem/Conv", "/neck/Conv"]
    assert [text for text, _ in files[1]] == ["float", "model.float.onnx", "fp32 72", "0123456789ab"]
    assert "300 images of coco (sha256 3f2a91c04b1e, 2 skipped)" in found.text
    assert "16-bit layers cost float time here" in found.text
    assert {"accuracy-latency", "sensitivity"} <= {attrs.get("id") for _, attrs in found.tags}


def test_page_without_ranking_plan_and_figures(card, row):
    bare = card((row(latency=None),), notes=(), environment={})
    found = Page(scorecard_html(bare))
    assert found.headings == ["net.onnx on ort-cpu", "Conditions", "Files", "How to read this"]
    assert found.sources() == []


def test_page_opens_offline(card, sensitivity, plan):
    text = scorecard_html(card(), sensitivity, plan)
    assert Page(text).sources() == ["plotly.min.js"]
    assert "@import" not in text
    assert "url(" not in text


def test_page_follows_light_and_dark(card):
    text = scorecard_html(card())
    assert "prefers-color-scheme: dark" in text
    assert '<meta name="color-scheme" content="light dark">' in text


def test_modelled_cells_are_marked_and_measured_ones_are_not(card, row, modelled):
    rows = (row("float"), row("int8", latency=modelled(12.34, ratio=0.27)))
    table = Page(scorecard_html(card(rows))).tables[0]
    assert [text for text, kind in table[2] if kind == "modelled"] == ["~12.3 ±6 % modelled", "~14.3", "~0.27"]
    assert not any(kind == "modelled" or "~" in text for text, kind in table[1])


def test_hostile_names_are_text(card, row, sensitivity, hostile):
    layers = (sensitivity.layers[0].model_copy(update={"layer": hostile}),)
    model = card().model.model_copy(update={"name": hostile})
    rows = (row(hostile, file=hostile, accuracy_on=hostile),)
    scorecard = card(rows, model=model, notes=(hostile,), settings={hostile: hostile}, environment={hostile: [hostile]})
    plan = PrecisionPlan(layers={hostile: Precision.INT16}, made_by=hostile)
    text = scorecard_html(scorecard, sensitivity.model_copy(update={"layers": layers}), plan)
    found = Page(text)
    assert "<script>alert(1)" not in text
    assert "alert(1)" in found.headings[0]
    # Ours: the library, and for each of the two drawings what plotly writes; nothing that a name opened.
    bare = Page(scorecard_html(card(), sensitivity, plan))
    assert sum(tag == "script" for tag, _ in found.tags) == sum(tag == "script" for tag, _ in bare.tags)


def test_same_artefacts_same_bytes(card, sensitivity, plan):
    assert scorecard_html(card(), sensitivity, plan) == scorecard_html(card(), sensitivity, plan)


def test_write_report(tmp_path, monkeypatch, card, sensitivity, plan):
    monkeypatch.setattr(page, "plotly_library", lambda: "library")
    folder = tmp_path / "new" / "out"
    markdown, html = write_report(folder, card(), sensitivity, plan)
    assert sorted(path.name for path in folder.iterdir()) == ["plotly.min.js", "report.html", "report.md"]
    assert markdown.read_text(encoding="utf-8") == scorecard_markdown(card(), sensitivity, plan)
    assert html.read_text(encoding="utf-8") == scorecard_html(card(), sensitivity, plan)
    assert (folder / "plotly.min.js").read_text(encoding="utf-8") == "library"


def test_library_is_written_once_and_mended(tmp_path, monkeypatch, card):
    monkeypatch.setattr(page, "plotly_library", lambda: "library")
    write_report(tmp_path, card())
    library = tmp_path / "plotly.min.js"
    before = library.stat().st_ino
    write_report(tmp_path, card())
    assert library.stat().st_ino == before
    library.write_text("half of it", encoding="utf-8")
    write_report(tmp_path, card())
    assert library.read_text(encoding="utf-8") == "library"


def test_real_library_stands_beside_the_page(tmp_path, card):
    write_report(tmp_path, card())
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


def test_page_without_drawings_needs_no_library(tmp_path, card, row):
    write_report(tmp_path, card((row(latency=None),)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_folder_that_cannot_be_made(tmp_path, card):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(tmp_path / "file" / "out", card())
