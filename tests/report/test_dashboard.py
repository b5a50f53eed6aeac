"""The HTML report: self-contained, escaped, failed cells shown as failed, every number with its source."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from sae_match.record import JobRecord
from sae_match.record.labels import BUILT_IN_LABELS
from sae_match.report.cli import main
from sae_match.report.pages import visible
from sae_match.report.report import Report, dashboard
from sae_match.report.tables import Cell, Table
from tests.report.conftest import job_table

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags with attributes, rows of each table as texts, and the text of script and style elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {"script": "", "style": ""}
        self.tables: dict[str, list[list[str]]] = {}
        self._open, self._table = "", ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag in self.inline:
            self._open = tag
        elif tag == "table":
            self._table = found["id"] or ""
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""
        elif tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inline[self._open] += data
        elif self._table and self.tables[self._table] and self.tables[self._table][-1]:
            self.tables[self._table][-1][-1] += data

    def rows(self, table: str) -> list[list[str]]:
        """The texts of a table's cells, its header first."""
        return [[text.strip() for text in row] for row in self.tables[table]]

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def page_of(sweep: Path, *arguments: str) -> Page:
    main([str(sweep), *arguments])
    return Page((sweep / "report" / "report.html").read_text("utf-8"))


def add_job(folder: Path, error: str | None = None, **config: object) -> None:
    record = JobRecord(folder)
    record.write_config(yaml.safe_dump({"matching": {"metric": "both"}, "folding": {"name": "theta"}, **config}))
    try:
        with record.guard():
            if error is not None:
                raise ValueError(error)
            record.write_pairs(job_table())
            record.write_metrics({"matching_score": 0.5})
    except ValueError:
        pass


def test_the_page_needs_nothing_but_itself(sweep: Path) -> None:
    page = page_of(sweep)
    assert all(value.startswith("data:image/svg+xml;base64,") for value in page.attributes("src"))
    assert page.attributes("src")
    assert not any(tag in ("link", "iframe", "object", "base", "form") for tag, _ in page.tags)
    assert not any(name.startswith("on") or name == "style" for _, attrs in page.tags for name in attrs)
    assert not any(re.match(r"[a-z]+:|//", value) for value in page.attributes("href"))
    (policy,) = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inline[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        assert sum(tag == kind for tag, _ in page.tags) == 1


def test_failed_cells_say_failed_and_why(sweep: Path) -> None:
    page = page_of(sweep, "--no-figures")
    jobs = {row[0]: row for row in page.rows("jobs-table")[1:]}
    assert [jobs[name][1] for name in ("0", "1", "9", "10")] == ["done", "done", "done", "failed"]
    assert "ValueError: b_enc | has" in jobs["10"] and jobs["10"][-2:] == ["–", "–"]
    header, *rows = page.rows("comparison-table")
    assert header[:4] == ["job", "state", "metric", "folding"]
    failed = next(row for row in rows if row[0] == "10")
    assert failed[4:-1] == ["failed"] * (len(header) - 5)
    ablation = page.rows("ablation-table")
    assert ablation[4][:3] == ["decoder", "none", "failed"] and ablation[1][2].startswith("0.456 [0.400, 0.500] #1")
    effects = page.rows("effects-table")
    assert effects[1][:4] == ["metric", "decoder − both", "all", "1 (+1 without partner)"]


def test_every_number_names_its_job_and_links_lead_to_files(sweep: Path) -> None:
    page = page_of(sweep)
    titles = page.attributes("title")
    assert any(title.startswith("matching_score in ../0/metrics.json (job 0)") for title in titles)
    assert any(title == "matching_score: 9 - 0" for title in titles)
    numbers = [attrs for tag, attrs in page.tags if tag == "td" and "data-sort" in attrs and "." in attrs["data-sort"]]
    assert sum("title" not in attrs for attrs in numbers) <= 2 * 4  # only the seconds of the jobs
    for href in page.attributes("href"):
        if not href.startswith("#"):
            assert (sweep / "report" / unquote(href)).exists(), href


@pytest.mark.parametrize("place", ["name", "error", "setting", "metric"])
def test_what_comes_from_records_is_text(sweep: Path, place: str) -> None:
    if place == "name":
        add_job(sweep / "<img src=x onerror=alert(1)>", seed=5)
    elif place == "error":
        add_job(sweep / "evil", error=HOSTILE)
    elif place == "setting":
        add_job(sweep / "evil", seed=HOSTILE)
    else:
        pairs = sweep / "0" / "pairs.csv"
        pairs.write_text(pairs.read_text().replace("residual_norm", '"<b onclick=alert(1)>"'))
    page = page_of(sweep)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "b" or "onerror" in attrs or "onclick" in attrs for tag, attrs in page.tags)
    assert all(tag != "img" or (attrs["src"] or "").startswith("data:") for tag, attrs in page.tags)
    seen = str(page.tables) + str(page.attributes("title")) + str(page.attributes("data-title"))
    assert ("onclick=alert(1)" if place == "metric" else "onerror=alert(1)") in seen


def test_text_and_links_are_escaped() -> None:
    assert visible("a\u202eb\x00c\nd") == "a\\u202eb\\u0000c\nd"
    row = [Cell("<&>\"'", title="<&>\"'\x00"), Cell("x", href="javascript:alert(1)"), Cell("y", href="../a b/#1?")]
    report = Report([], [], [], BUILT_IN_LABELS, {}, {"jobs": Table(["a", "b/<", "c ↓"], [row], ["a"])}, "")
    text = dashboard(report, [], [])
    assert '<td title="&lt;&amp;&gt;&#34;&#39;\\u0000">&lt;&amp;&gt;&#34;&#39;</td>' in text
    assert '<a href="javascript%3Aalert%281%29">x</a>' in text and '<a href="../a%20b/%231%3F">y</a>' in text
    assert ">b/<wbr>&lt;<" in text and ">c&nbsp;↓<" in text


def test_the_page_is_a_pure_function_of_the_records(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    shutil.copytree(sweep, tmp_path / "moved" / "sweep")
    jobs = [str(sweep / name) for name in ("0", "1", "9", "10")]
    moved = [str(tmp_path / "moved" / "sweep" / name) for name in ("10", "0", "9", "1", "0")]
    main([*jobs, "--output", str(tmp_path / "out")])
    main([*moved, "--output", str(tmp_path / "moved" / "out")])
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (tmp_path / "out", tmp_path / "moved" / "out")
    )
    assert first == second and "report.html" in first and "ablation.csv" in first and "effects.csv" in first
    assert str(tmp_path).encode() not in first["report.html"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_sorts_filters_and_switches(sweep: Path, tmp_path: Path) -> None:
    """The page as it is, then a copy without its policy and with a few clicks at the end."""
    add_job(sweep / "evil", error=HOSTILE)
    main([str(sweep)])
    original = (sweep / "report" / "report.html").read_text("utf-8")
    clicks = """<script>
    const heads = [...document.querySelectorAll("#comparison-table th")];
    const score = heads.find((head) => head.textContent === "matching_score");
    score.click(); score.click();
    const choice = document.querySelector("#jobs .controls select");
    choice.value = "1"; choice.dispatchEvent(new Event("change"));
    const metric = document.getElementById("metric");
    metric.value = "0"; metric.dispatchEvent(new Event("change"));
    </script></body>"""
    clicked = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", original).replace("</body>", clicks)
    dom = {}
    for name, text in (("page", original), ("clicked", clicked)):
        (tmp_path / f"{name}.html").write_text(text, "utf-8")
        dom[name] = Page(in_browser(tmp_path / f"{name}.html", tmp_path / "profile"))
    hidden = [
        [attrs["data-title"] for tag, attrs in dom[n].tags if tag == "figure" and "hidden" not in attrs] for n in dom
    ]
    assert hidden[0] == ["matching score: matched"] and hidden[1] != hidden[0] and len(hidden[1]) == 1
    assert [row[0] for row in dom["page"].rows("comparison-table")[1:]] == ["0", "1", "9", "10", "evil"]
    # The best first; jobs without a number last.
    assert [row[0] for row in dom["clicked"].rows("comparison-table")[1:]][:3] == ["0", "1", "9"]
    shown = [attrs for tag, attrs in dom["clicked"].tags if tag == "tr" and "hidden" in attrs]
    assert len(shown) == 3  # the jobs that are done, where "failed" was chosen
    assert not any(attrs.get("src") == "x" for _, attrs in dom["page"].tags)


def in_browser(path: Path, profile: Path) -> str:
    """The document after its scripts have run."""
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    return done.stdout
