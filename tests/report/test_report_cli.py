"""`sae-match-report` on a sweep with a failed job, and on what is not a sweep."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_match.errors import UserError
from sae_match.record.pairs import read_pairs, write_pairs
from sae_match.report import find_records, read_record
from sae_match.report.cli import main
from sae_match.report.figures import write_overlays
from sae_match.report.report import Options, make_report, report_text

FIGURES = [
    "delta_loss.png",
    "explained_variance.png",
    "matching_score.png",
    "mean_theta.png",
    "residual_norm.png",
    "weight_mse_W_dec.png",
    "weight_mse_W_enc.png",
    "weight_mse_b_enc.png",
]


WITH_DATA = sorted(name.replace(".png", f".{kind}") for name in FIGURES for kind in ("png", "svg", "csv"))
TABLES = ["ablation.csv", "effects.csv", "report.csv", "report.html", "report.md"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_failed_job_is_shown_and_makes_the_exit_code_1(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("# SAE Match: 3 of 4 jobs done\n")
    assert "- **10** failed: ValueError: b_enc | has a NaN in layer 12" in printed
    written = sweep / "report"
    assert sorted(contents(written)) == sorted([*WITH_DATA, "effects.png", "effects.svg", *TABLES])
    assert (written / "report.md").read_text() == printed
    assert all(f"({name})" in printed for name in FIGURES)
    assert len(pd.read_csv(written / "report.csv")) == 4


@pytest.mark.figures
def test_the_report_is_a_pure_function_of_the_records(sweep: Path, tmp_path: Path) -> None:
    main([str(sweep), "--output", str(tmp_path / "out")])
    shutil.copytree(sweep, tmp_path / "moved" / "sweep")
    main([str(tmp_path / "moved" / "sweep"), "--output", str(tmp_path / "moved" / "out")])
    assert contents(tmp_path / "out") == contents(tmp_path / "moved" / "out")


def test_a_sweep_without_trouble_ends_with_0(sweep: Path) -> None:
    shutil.rmtree(sweep / "10")
    assert main([str(sweep), "--no-figures"]) == 0
    assert sorted(contents(sweep / "report")) == TABLES


def test_several_paths_are_printed_and_written_only_on_request(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweep / "0"), str(sweep / "1"), str(sweep / "0")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("# SAE Match: 2 of 2 jobs done") and "nothing was written" in captured.err
    assert main([str(sweep / "0"), str(sweep / "1"), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "matching_score.png").exists()


@pytest.mark.parametrize(("name", "message"), [("nowhere", "not a directory"), ("empty", "no job found")])
def test_nothing_to_report_is_the_users_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and "Traceback" not in captured.err


def test_an_unwritable_output_is_the_users_to_mend(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "file").write_text("")
    assert main([str(sweep), "--output", str(sweep / "file" / "report")]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("status.json", "{half"),
        ("status.json", "[]"),
        ("status.json", "{}"),
        ("metrics.json", "{half"),
        ("pairs.csv", "layer,layer_to\n1,2\n"),
        ("config.yaml", "a: [1"),
    ],
)
def test_a_damaged_record_is_reported_and_hides_no_other(sweep: Path, file: str, content: str) -> None:
    (sweep / "1" / file).write_text(content)
    records = {record.name: record for record in find_records([sweep])}
    assert records["1"].state == "unreadable" and records["0"].state == "done"
    assert file in (records["1"].error or "") or file == "status.json"
    assert "**unreadable**" in report_text(make_report(list(records.values()), Options()))


def test_a_job_is_named_by_its_place(sweep: Path) -> None:
    assert [record.name for record in find_records([sweep])] == ["0", "1", "9", "10"]
    assert [record.name for record in find_records([sweep.parent])] == ["sweep/0", "sweep/1", "sweep/9", "sweep/10"]
    assert [record.name for record in find_records([sweep / "9"])] == ["9"]
    with pytest.raises(UserError):
        find_records([sweep / "2"])


def test_a_record_reads_back_what_the_job_wrote(sweep: Path) -> None:
    record = read_record(sweep / "0")
    assert record.state == "done" and record.error is None and record.seconds is not None
    assert record.factors == {
        "metric": "both",
        "folding": "theta",
        "include_bias": True,
        "dataset": "wiki",
        "seed": 0,
    }
    assert record.metrics["matching_score"] == 0.4563 and record.metrics["l0"] is None
    assert record.pairs is not None and set(record.pairs["variant"]) >= {"matched", "random", "ceiling"}


@pytest.fixture
def overlays(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[str], set[str]]]:
    """What `plot_overlay` was asked for: "metric:variant" -> (labels, common variants)."""
    drawn: dict[str, tuple[list[str], set[str]]] = {}

    def spy(tables: dict[str, pd.DataFrame], metric: str, variant: str, path: Path, **rest: Any) -> Path:
        drawn[f"{metric}:{variant}"] = (list(tables), set(rest["common"]["variant"]))
        return path

    monkeypatch.setattr("sae_match.report.figures.plot_overlay", spy)
    return drawn


def test_overlays_draw_each_job_once_and_shared_curves_once(
    sweep: Path, tmp_path: Path, overlays: dict[str, tuple[list[str], set[str]]]
) -> None:
    write_overlays(find_records([sweep]), tmp_path)
    jobs = ["metric=both, folding=theta", "metric=both, folding=none", "metric=decoder, folding=theta"]
    assert overlays["matching_score:matched"] == (jobs, {"random", "ceiling"})
    assert overlays["delta_loss:encode_permute_decode"] == (
        jobs,
        {"encode_decode_current", "encode_decode_previous", "layer_drop"},
    )
    # The same in every job: drawn as one curve, not as an overlay of the jobs.
    assert not any(name.startswith("mean_theta") for name in overlays) and (tmp_path / "mean_theta.png").exists()


def test_a_control_that_differs_between_jobs_is_not_passed_off_as_common(
    sweep: Path, tmp_path: Path, overlays: dict[str, tuple[list[str], set[str]]]
) -> None:
    pairs = read_pairs(sweep / "1" / "pairs.csv")
    pairs.loc[(pairs["variant"] == "random") & (pairs["layer"] == 12), "value"] *= 1.01
    write_pairs(sweep / "1" / "pairs.csv", pairs)
    write_overlays(find_records([sweep]), tmp_path)
    assert overlays["matching_score:matched"][1] == {"ceiling"}


def test_help_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "--output" in printed and "Exit code" in printed


@pytest.mark.parametrize(
    ("files", "damaged"),
    [
        ({"flow/events.csv": b"layer,layer_to\n1,2\n"}, "flow/events.csv"),
        ({"flow/events.csv": b""}, "flow/events.csv"),
        ({"steering.parquet": b"PAR1 cut off"}, "steering.parquet"),
        ({"top_tokens.parquet": b"", "features.parquet": b"PAR1 cut off"}, "features.parquet"),
        ({"judgements.jsonl": b'{"variant": "matched"', "features.parquet": None}, "judgements.jsonl"),
        ({"judgements.jsonl": b'{"layer": 3}', "features.parquet": None}, "judgements.jsonl"),
        ({"top_tokens.parquet": b"PAR1 cut off", "features.parquet": None}, "top_tokens.parquet"),
        ({"example_pairs.csv": b""}, "example_pairs.csv"),
    ],
)
def test_a_damaged_table_is_named(
    sweep: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes | None], damaged: str
) -> None:
    (sweep / "0" / "flow").mkdir()
    for name, content in files.items():
        if content is None:
            pair = {"layer": [3], "feature": [0], "layer_to": [4], "partner": [0], "mse_W_dec": [0.1]}
            pd.DataFrame(pair).to_parquet(sweep / "0" / name)
        else:
            (sweep / "0" / name).write_bytes(content)
    assert main([str(sweep)]) == 1
    captured = capsys.readouterr()
    assert f"{sweep / '0' / damaged}: not a readable" in captured.out and "4 of 6" not in captured.out
    rows = {line.split("|")[1].strip(): line for line in captured.out.splitlines() if line.startswith("| ")}
    assert "unreadable" in rows["0"] and "done" in rows["1"]


@pytest.mark.parametrize("file", ["metrics.json", "pairs.csv", "config.yaml"])
def test_a_done_record_without_a_file_is_not_done(sweep: Path, file: str) -> None:
    (sweep / "1" / file).unlink()
    record = read_record(sweep / "1")
    assert record.state == "unreadable" and f"{file} is missing" in (record.error or "")


def test_a_table_that_is_cut_off_is_not_read(sweep: Path) -> None:
    content = (sweep / "1" / "pairs.csv").read_bytes()
    (sweep / "1" / "pairs.csv").write_bytes(content[: len(content) * 2 // 3])
    assert "pairs.csv" in (read_record(sweep / "1").error or "")
