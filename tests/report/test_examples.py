"""Example pairs: which are chosen, and that their table is text in the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from sae_match.errors import UserError
from sae_match.record import JobRecord
from sae_match.record.contents import EXAMPLES
from sae_match.report.cli import main
from sae_match.report.examples import ALIKE, BEST, COLUMNS, TOGETHER, WORST, choose_examples, read_examples
from tests.report.test_dashboard import Page

HOSTILE = "<script>«alert(1)»</script>"


def feature_table(cosine: list[float], score: list[float] | None, active: list[int] | None = None) -> pd.DataFrame:
    """Features 0, 1, ... of layers 3 -> 4 with partners 100, 101, ..."""
    n = range(len(cosine))
    table = pd.DataFrame(
        {"layer": 3, "layer_to": 4, "feature": n, "partner": [100 + i for i in n], "decoder_cosine": cosine,
         "mse_W_dec": [1 - c for c in cosine], "theta_ratio": 1.0}
    )  # fmt: skip
    if score is None:
        return table
    return table.assign(matching_score=score, active=active or 50, partner_active=50)


def test_each_kind_by_hand() -> None:
    """Ranks of cosine 1..8 and of score: sums and differences can be read off."""
    cosine = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    score = [0.1, 0.8, 0.3, 0.4, 0.5, 0.6, 0.2, 0.9]  # ranks 1, 7, 3, 4, 5, 6, 2, 8
    found = choose_examples(feature_table(cosine, score), min_count=10, per_kind=1)
    assert dict(zip(found["kind"], found["feature"], strict=True)) == {BEST: 7, WORST: 0, TOGETHER: 1, ALIKE: 6}
    assert found["partner"].tolist() == [107, 100, 101, 106] and list(found.columns) == list(COLUMNS)
    assert found.loc[2, ["decoder_cosine", "matching_score", "active"]].tolist() == [0.2, 0.8, 50]


def test_a_pair_is_shown_once_and_where_ranks_agree_nothing_is_surprising() -> None:
    cosine = [i / 10 for i in range(6)]
    found = choose_examples(feature_table(cosine, cosine), min_count=10)
    assert found["kind"].tolist() == [BEST] * 2 + [WORST] * 2
    assert found["feature"].tolist() == [5, 4, 0, 1]
    many = choose_examples(feature_table([i / 500 for i in range(500)], [i % 97 for i in range(500)]), min_count=10)
    assert many["kind"].value_counts().to_dict() == {BEST: 15, WORST: 15, TOGETHER: 15, ALIKE: 15}
    assert not many.duplicated(["layer", "feature"]).any()


def test_rare_features_are_left_out() -> None:
    table = feature_table([0.9, 0.5, 0.1, 0.2], [0.9, 0.5, 0.1, 0.2], [9, 50, 50, 50])
    found = choose_examples(table.assign(partner_active=[50, 50, 9, 50]), min_count=10)
    assert set(found["feature"]) == {1, 3}
    assert choose_examples(table.assign(active=0), min_count=10).empty


def test_without_text_the_cosine_decides() -> None:
    found = choose_examples(feature_table([0.3, 0.9, 0.1, 0.5], None), min_count=10, per_kind=1)
    assert list(zip(found["kind"], found["feature"], strict=True)) == [(BEST, 1), (WORST, 2)]
    assert found["matching_score"].isna().all()


def with_examples(sweep: Path, job: str, texts: list[str]) -> None:
    cosine = [i / 10 for i in range(8)]
    score = [0.1, 0.8, 0.3, 0.4, 0.5, 0.6, 0.2, 0.9]
    examples = choose_examples(feature_table(cosine, score), min_count=10, per_kind=1)
    JobRecord(sweep / job).write_examples(examples.assign(contexts=texts, partner_contexts="«b»"))


def test_the_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    with_examples(tmp_path, "job", ["NA", "null", "", 'a, "b"'])
    found = read_examples(tmp_path / "job" / EXAMPLES)
    assert found["contexts"].tolist() == ["NA", "null", "", 'a, "b"']
    bare = choose_examples(feature_table([0.3, 0.9], None), min_count=10)
    JobRecord(tmp_path / "bare").write_examples(bare)
    assert read_examples(tmp_path / "bare" / EXAMPLES)["active"].isna().all()
    (tmp_path / "job" / EXAMPLES).write_text("kind,layer\n1,2\n")
    with pytest.raises(UserError, match=r"example_pairs\.csv: not a readable table"):
        read_examples(tmp_path / "job" / EXAMPLES)


def test_the_report_has_a_table_to_sort_and_filter(sweep: Path, tmp_path: Path) -> None:
    with_examples(sweep, "0", [HOSTILE, "x «y» z", "", "w"])
    with_examples(sweep, "10", ["of a failed job"] * 4)
    main([str(sweep), "--no-figures", "--output", str(tmp_path / "out")])
    page = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    header, *rows = page.rows("examples-table")
    assert header[:5] == ["job", "kind", "layers", "feature", "partner"] and len(rows) == 4
    assert rows[0] == ["0", "best", "3→4", "7", "107", "0.700", "0.300", "0.900", "50", "50", HOSTILE, "«b»"]
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    written = pd.read_csv(tmp_path / "out" / EXAMPLES, keep_default_na=False)
    assert written["job"].tolist() == [0] * 4 and written["contexts"].tolist()[1:] == ["x «y» z", "", "w"]
    assert "«y»" not in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_a_record_of_other_columns_is_the_users_to_mend(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "0" / EXAMPLES).write_text(yaml.safe_dump({"a": 1}))
    assert main([str(sweep), "--no-figures"]) == 1
    assert "example_pairs.csv: not a readable table" in capsys.readouterr().out
