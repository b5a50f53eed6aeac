"""The embedded texts: markup stripping, which files count as code, the split, and a missing wheel."""

from __future__ import annotations

import bz2
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest

from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text import load_windows
from sae_match.text.source import Document, Part, TextSource
from sae_match.text.sources import embedded
from sae_match.text.sources.embedded import MIN_CODE_BYTES, EmbeddedCode, EmbeddedNews, EmbeddedWiki, article_prose

MARKUP = """{{Infobox|name=x}}
[[File:A.jpg|thumb|A caption with a [[link]]]]
'''Alpha''' is the [[first letter|first]] ({{lang|grc|ἄλφα}}) letter ({{IPA|/a/}}),<ref name="a">{{cite book|x}}</ref>
wrapped here, {{convert|5|to|6|km|mi}} long.

{| class="wikitable"
| cell {| nested
|}
|}
==Empty==
==History==
===Early===
* ''One''
* Two [http://x.org site]
== See also ==
* [[Beta]]
==After==
The end&nbsp;({{cn}}).
<gallery>
File:B.jpg|B
</gallery>
"""
PROSE = """Alpha is the first (ἄλφα) letter, wrapped here, 5 to 6 km long.

History

Early

- One
- Two site

After

The end."""


def test_markup_becomes_prose() -> None:
    pytest.importorskip("gensim")
    assert article_prose(MARKUP) == PROSE


def page(title: str, text: str, namespace: int = 0, redirect: str = "") -> str:
    return f"<page><title>{title}</title><ns>{namespace}</ns>{redirect}<revision><text>{text}</text></revision></page>"


def test_redirects_and_other_namespaces_are_dropped(tmp_path: Path) -> None:
    pytest.importorskip("gensim")
    pages = [
        page("A", "Prose of A."),
        page("B", "#REDIRECT [[A]]"),
        page("C", "x", redirect='<redirect title="A"/>'),
        page("Wikipedia:D", "About.", namespace=4),
        page("E", "Prose of E."),
    ]
    dump = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress(dump.encode()))
    documents = list(embedded._read_wiki(path))
    assert [(document.id, document.text) for document in documents] == [
        ("A", "A\n\nProse of A.\n"),
        ("E", "E\n\nProse of E.\n"),
    ]


def test_code_leaves_out_tests_tables_packages_and_short_files(tmp_path: Path, monkeypatch) -> None:
    for name in ("b.py", "a/c.py", "test/t.py", "a/tests/t.py", "site-packages/p.py", "encodings/e.py", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#" * MIN_CODE_BYTES, encoding="utf-8")
    (tmp_path / "_sysconfigdata_linux.py").write_text("#" * MIN_CODE_BYTES, encoding="utf-8")
    (tmp_path / "short.py").write_text("#" * (MIN_CODE_BYTES - 1), encoding="utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert [document.id for document in EmbeddedCode(name="code").read({})] == ["a/c.py", "b.py"]


def test_the_standard_library_is_read(tmp_path: Path) -> None:
    source = EmbeddedCode(name="code")
    documents = {document.id: document.text for document in source.read({})}
    expected = (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text(encoding="utf-8")
    assert documents["textwrap.py"] == expected
    assert list(documents) == sorted(documents) and len(documents) > 100
    assert source.identity()["python"] in source.note()


def test_a_library_without_sources_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="No Python sources"):
        EmbeddedCode(name="code").identity()


@pytest.mark.parametrize("source", [EmbeddedWiki, EmbeddedNews])
def test_a_missing_wheel_names_the_installation(source: type[TextSource], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError, match="pip install gensim"):
        source(name="x").note()


def test_news_splits_into_disjoint_parts_that_never_change(tmp_path: Path, make_tokenizer) -> None:
    pytest.importorskip("gensim")
    parts = {}
    for part in get_args(Part):
        news = EmbeddedNews(name="news", part=part, documents=0, window_tokens=32)
        parts[part] = set(load_windows(news, make_tokenizer(), Store(tmp_path)).titles)
    assert parts["train"].isdisjoint(parts["evaluation"])
    assert parts["train"] | parts["evaluation"] == parts["all"]
    assert (len(parts["train"]), len(parts["evaluation"])) == (234, 66)


def test_the_split_rule_is_frozen() -> None:
    # SAEs were trained on the train part: these answers must hold for good.
    def holds(kind: type[TextSource], document: object, part: Part) -> bool:
        return kind(name="x", part=part).holds(Document(str(document), "", ""))

    assert [i for i in range(1, 21) if holds(EmbeddedNews, i, "evaluation")] == [5, 6, 7, 12, 17]
    assert holds(EmbeddedWiki, "Altruism", "evaluation") and not holds(EmbeddedWiki, "Anarchism", "evaluation")
    assert holds(EmbeddedWiki, "Altruism", "all") and not holds(EmbeddedWiki, "Altruism", "train")
