"""The page of feature paths: parsed as HTML, its data read back, hostile text kept as text, its size bounded."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sae_match.errors import UserError
from sae_match.record import JobRecord
from sae_match.record.contents import PATHS
from sae_match.report.cli import main
from sae_match.report.features import top_tokens
from sae_match.report.pages import neuronpedia_link, path_page
from tests.report.conftest import job_table

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u2028'\""


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of script and style elements and of everything else."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "": []}
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = tag
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open][-1] += data
        else:
            self.inside[""].append(data)

    @property
    def data(self) -> dict[str, object]:
        return json.loads(self.inside["script"][0])


def paths_of(width: int = 3, layers: int = 3) -> pd.DataFrame:
    """Feature i of layer t is i + t (mod width); the last path ends one layer early; MSE grows with the feature."""
    rows = []
    for number in range(width):
        for layer in range(layers - (number == width - 1)):
            first = layer == 0
            rows.append(
                {
                    "path": number, "layer": 10 + layer, "feature": (number + layer) % width,
                    "mse_W_dec": math.nan if first else (number + 1) / 7, "decoder_cosine": math.nan if first else 0.25,
                    "matching_score": math.nan if first else 0.5,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_data_are_those_of_the_table() -> None:
    page = Parsed(path_page("title", paths_of()))
    steps = {"score": [None, 0.5, 0.5], "cosine": [None, 0.25, 0.25]}
    assert page.data == {
        "layers": [10, 11, 12],
        "paths": [
            {"feature": [0, 1, 2], "mse": [None, 0.143, 0.143], **steps},
            {"feature": [1, 2, 0], "mse": [None, 0.286, 0.286], **steps},
            {"feature": [2, 0], "mse": [None, 0.429], "score": [None, 0.5], "cosine": [None, 0.25]},
        ],
    }
    assert "3 of 3 features of layer 10, followed to layer 12" in "".join(page.inside[""])


def test_hostile_text_stays_text() -> None:
    page_text = path_page(HOSTILE, paths_of(), tokens={(10, 0): HOSTILE, (11, 2): "fine"})
    page = Parsed(page_text)
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2 and "img" not in names
    assert "alert(1)" not in page.inside["script"][1]
    assert "<img" not in page_text and page_text.count("</script>") == 2
    paths = page.data["paths"]
    assert paths[0]["tokens"] == [HOSTILE, "", ""]
    assert paths[1]["tokens"] == ["", "fine", ""]
    assert "tokens" not in paths[2]
    # The title, unescaped by the parser; the line separator is shown as its code.
    assert HOSTILE.replace("\u2028", r"\u2028") in "".join(page.inside[""])


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = Parsed(path_page("title", paths_of(), link=lambda layer, feature: f"https://example.org/{layer}/{feature}"))
    assert not [attributes for _, attributes in page.tags if {"src", "href"} & attributes.keys()]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy and "unsafe" not in policy
    for text in (page.inside["script"][1], page.inside["style"][0]):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    code = page.inside["script"][1]
    assert not [word for word in ("innerHTML", "eval(", "fetch(", "document.write", "http") if word in code]
    assert page.data["paths"][1]["link"][1] == "https://example.org/11/2"


def test_a_wide_span_is_cut_to_the_room_and_keeps_good_and_bad_paths() -> None:
    table = paths_of(width=2000, layers=4)
    text = path_page("title", table, data_bytes=20_000)
    shown = [path["feature"][0] for path in Parsed(text).data["paths"]]
    assert len(text) < 30_000
    assert 100 < len(shown) < 400
    assert shown[0] == 0 and shown[-1] >= 1998
    assert np.diff(shown).max() <= 2 * np.diff(shown).min() + 1
    wanted = path_page("title", table, features=[7, 1500], data_bytes=20_000)
    assert [path["feature"][0] for path in Parsed(wanted).data["paths"]] == [7, 1500]
    with pytest.raises(UserError, match=r"no path begins at feature 2000: features are 0\.\.1999"):
        path_page("title", table, features=[2000])


def test_links_are_given_where_neuronpedia_has_the_same_sae() -> None:
    sae = {"neuronpedia": "gemma-2-2b/{layer}-gemmascope-res-16k", "l0": "canonical"}
    assert neuronpedia_link(sae)(20, 5) == "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/5"
    assert neuronpedia_link({**sae, "l0": "paper"})(20, 5) == neuronpedia_link(sae)(20, 5)
    assert neuronpedia_link({**sae, "l0": "paper"})(4, 5) is None
    for other in ({"l0": "canonical"}, {"neuronpedia": None}, {**sae, "l0": "similar"}, {**sae, "l0": "71"}):
        assert neuronpedia_link(other)(20, 5) is None


def test_top_tokens_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "top_tokens.parquet"
    assert top_tokens(path) == {}
    table = pd.DataFrame({"layer": [3, 3, 4], "feature": [1, 1, 0], "token": ["b", "a", "<c>"], "score": [2, 1, 1]})
    table.to_parquet(path)
    assert top_tokens(path) == {(3, 1): "b · a", (4, 0): "<c>"}
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"top_tokens\.parquet: not a readable table"):
        top_tokens(path)


def test_the_report_writes_a_page_per_record_with_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, has_paths in (("a", True), ("b", False)):
        record = JobRecord(tmp_path / "jobs" / name)
        record.write_config(yaml.safe_dump({"sae": {"name": f"sae_{name}"}, "seed": 0}))
        with record.guard():
            record.write_metrics({})
            record.write_pairs(job_table())
            if has_paths:
                record.write_table(PATHS, paths_of())
                pd.DataFrame({"layer": [10], "feature": [0], "token": ["word"]}).to_parquet(
                    record.directory / "top_tokens.parquet"
                )
    assert main([str(tmp_path / "jobs")]) == 0
    report = tmp_path / "jobs" / "report"
    assert "- [paths.html](paths.html)" in (report / "report.md").read_text()
    page = Parsed((report / "paths.html").read_text("utf-8"))
    assert page.data["paths"][0]["tokens"][0] == "word"
    assert "Feature paths: sae_a (a)" in page.inside[""]
    first = (report / "paths.html").read_bytes()
    assert main([str(tmp_path / "jobs"), "--feature", "2"]) == 0
    assert (report / "paths.html").read_bytes() != first
    assert main([str(tmp_path / "jobs"), "--feature", "99"]) == 2
    assert "no path begins at feature 99" in capsys.readouterr().err
    assert main([str(tmp_path / "jobs")]) == 0
    assert (report / "paths.html").read_bytes() == first
