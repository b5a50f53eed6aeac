"""labels.json: written, read back in order, joined; what a damaged one, or none, means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sae_match.metrics import Description
from sae_match.record import JobRecord
from sae_match.record.labels import BUILT_IN_LABELS, LABELS, Labels, joined, read_labels
from sae_match.report import read_record
from sae_match.style import Look

MINE = Description(name="mine", label="my metric", unit="m", better="lower", combine="max", beside=("random",))
LOOK = Look("#123456", "X", ":", "my splice")


def written(tmp_path: Path) -> Path:
    labels = Labels(metrics={"mine": MINE, **BUILT_IN_LABELS.metrics}, variants={"my_splice": LOOK})
    JobRecord(tmp_path).write_labels(
        labels.only(["zeta/x", "l0", "mine", "delta_loss_difference"], ["my_splice", "no"])
    )
    return tmp_path / LABELS


def test_a_record_describes_its_own_numbers(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = json.loads(path.read_text())
    # Known metrics in the order of a table's columns, then those that were found by their names.
    assert [entry["name"] for entry in content["metrics"]] == ["mine", "l0", "delta_loss_difference", "zeta/x"]
    assert [entry["name"] for entry in content["variants"]] == ["my_splice"]
    found = read_labels(path)
    assert found.metrics["mine"] == MINE and found.variants["my_splice"] == LOOK
    assert list(found.metrics)[: len(BUILT_IN_LABELS.metrics)] == list(BUILT_IN_LABELS.metrics)
    assert found.metric("delta_loss_difference").better == "lower"
    assert found.metric("delta_loss_difference").unit == "nats/token"
    assert [found.split(name)[1] for name in ("mine", "mine/random", "zeta/x", "zeta/x/y", "unknown/v")] == [
        "matched", "random", "matched", "y", "v",
    ]  # fmt: skip


def test_how_numbers_become_one() -> None:
    assert [BUILT_IN_LABELS.metric(name).over_pairs([1, 2, 6]) for name in ("l0", "objective", "gap")] == [3, 9, 6]
    names = ("solver/bids", "solver/seconds/total", "judge_count/answered", "solver/peak_memory_gib", "unknown")
    assert [BUILT_IN_LABELS.metric(name).combine for name in names] == ["sum", "sum", "sum", "max", "mean"]


def test_without_the_file_the_package_knows(tmp_path: Path) -> None:
    assert read_labels(tmp_path / LABELS) is BUILT_IN_LABELS
    later = Labels(metrics={"l0": Description(name="l0", label="another")}, variants={})
    assert joined([BUILT_IN_LABELS, later]).metrics["l0"].label == "another"


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[]",
        '{"metrics": [], "variants": [{"name": "x", "color": "javascript:", "marker": "o", "linestyle": "-", '
        '"label": ""}]}',
        '{"metrics": [{"name": "x", "unknown": 1}], "variants": []}',
        '{"metrics": [{"name": "x", "better": "sideways"}], "variants": []}',
        '{"metrics": {}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    with JobRecord(tmp_path).guard():
        path = written(tmp_path)
        path.write_text(content)
    with pytest.raises(ValueError, match=LABELS):
        read_labels(path)
    record = read_record(tmp_path)
    assert record.state == "unreadable" and LABELS in (record.error or "")


def test_composition_sends_its_reach_to_trackers() -> None:
    assert BUILT_IN_LABELS.is_main("composition/beats_random_until")
    assert not BUILT_IN_LABELS.is_main("composition/beats_random_until_low")
    assert not BUILT_IN_LABELS.is_main("composition/matching_score/exact/distance_3")
