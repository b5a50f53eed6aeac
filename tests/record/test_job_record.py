"""The record of a job: states, refusals, files."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from sae_match.errors import UserError
from sae_match.files import atomic_path, write_text
from sae_match.record import JobRecord
from sae_match.record.contents import FEATURES


def status(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "status.json").read_text())


def test_a_finished_job_says_when_how_long_and_with_what(tmp_path: Path) -> None:
    with JobRecord(tmp_path).guard():
        assert status(tmp_path)["state"] == "running"
        assert status(tmp_path)["ended"] is None
    written = status(tmp_path)
    assert written["state"] == "done" and written["error"] is None
    started, ended = (datetime.fromisoformat(written[key]) for key in ("started", "ended"))
    assert started.utcoffset() is not None and started <= ended
    assert 0 <= written["seconds"] < 60
    assert written["versions"]["numpy"] == np.__version__
    assert {"python", "torch", "sae-match", "wandb", "hydra-core"} <= written["versions"].keys()
    assert {"git_sha", "git_dirty"} <= written.keys()
    assert not (tmp_path / "error.log").exists()


def test_an_exception_is_recorded_with_its_traceback_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="theta <= 0"), JobRecord(tmp_path).guard():
        raise UserError("theta <= 0 in layer 3")
    assert status(tmp_path)["state"] == "failed"
    assert status(tmp_path)["error"] == {"type": "UserError", "message": "theta <= 0 in layer 3"}
    log = (tmp_path / "error.log").read_text()
    assert "Traceback" in log and __file__ in log and log.endswith("theta <= 0 in layer 3\n")


def test_the_log_lies_in_the_record_once(tmp_path: Path) -> None:
    logger, own = logging.getLogger("sae_match.test"), tmp_path / "same" / "sae_match.log"
    with JobRecord(tmp_path / "record").guard():
        logger.warning("layer %d", 3)
    logger.warning("after the job")
    (line,) = (tmp_path / "record" / "sae_match.log").read_text().splitlines()
    assert line.endswith("WARNING sae_match.test: layer 3")
    own.parent.mkdir()
    handler = logging.FileHandler(own)  # as Hydra's, where hydra.run.dir is the record
    logging.getLogger().addHandler(handler)
    try:
        with JobRecord(own.parent).guard():
            logger.warning("layer 3")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert own.read_text() == "layer 3\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupted_job_counts_as_killed(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), JobRecord(tmp_path).guard():
        raise error
    assert status(tmp_path)["state"] == "killed"


def test_sigterm_is_recorded_and_the_old_handler_comes_back(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as caught, JobRecord(tmp_path).guard():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    assert status(tmp_path)["state"] == "killed"
    assert status(tmp_path)["error"] == {"type": "Terminated", "message": "received SIGTERM"}


def test_guard_works_outside_the_main_thread(tmp_path: Path) -> None:
    def job() -> None:
        with JobRecord(tmp_path).guard():
            pass

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert status(tmp_path)["state"] == "done"


def test_the_jobs_own_error_survives_a_record_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    record = JobRecord(tmp_path)
    with pytest.raises(ZeroDivisionError), record.guard():
        monkeypatch.setattr("sae_match.record.job.write_text", full_disk)
        raise ZeroDivisionError


def test_a_state_set_inside_the_guard_stays(tmp_path: Path) -> None:
    record = JobRecord(tmp_path)
    with record.guard():
        record.finish("failed", ValueError("seen and handled"))
    assert status(tmp_path)["state"] == "failed"


def test_an_unwritable_directory_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/job.*paths\.output_dir"):
        JobRecord(tmp_path / "file" / "job").write_config("seed: 0")


# -- an earlier record in the same place -----------------------------------------------------------------


def finished(directory: Path, config: dict[str, Any]) -> None:
    record = JobRecord(directory)
    record.write_config(yaml.safe_dump(config))
    with record.guard():
        record.write_metrics({"matching_score": 0.4})


def test_a_finished_record_of_another_configuration_is_kept(tmp_path: Path, config: dict[str, Any]) -> None:
    finished(tmp_path, config)
    other = yaml.safe_dump({**config, "folding": {"name": "none"}})
    with pytest.raises(UserError, match="another configuration"):
        JobRecord(tmp_path).write_config(other)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config


def test_the_same_science_may_run_again(tmp_path: Path, config: dict[str, Any]) -> None:
    finished(tmp_path, config)
    again = {**config, "tracking": {"mode": "none"}, "paths": {"output_dir": "elsewhere"}, "progress": True}
    JobRecord(tmp_path).write_config(yaml.safe_dump(again))


def test_a_failed_record_may_be_replaced(tmp_path: Path, config: dict[str, Any]) -> None:
    record = JobRecord(tmp_path)
    record.write_config(yaml.safe_dump(config))
    with pytest.raises(RuntimeError), record.guard():
        raise RuntimeError
    JobRecord(tmp_path).write_config(yaml.safe_dump({**config, "seed": 5}))


def test_a_new_attempt_starts_without_the_old_results(tmp_path: Path, config: dict[str, Any]) -> None:
    finished(tmp_path, config)
    old = JobRecord(tmp_path)
    old.permutation_path(3, 4).write_bytes(b"old")
    old.figure_path("old").write_bytes(b"old")
    (tmp_path / "figures" / "notes.txt").write_text("the user's own")
    with JobRecord(tmp_path).guard() as record:
        assert (tmp_path / "metrics.json").exists()  # until the new attempt's input is known to be good
        record.clear_results()
        assert not (tmp_path / "metrics.json").exists()
        assert not old.permutation_path(3, 4).exists()
        assert not old.figure_path("old").exists()
    assert (tmp_path / "figures" / "notes.txt").exists()


def test_a_folder_without_a_record_is_not_cleaned(tmp_path: Path, config: dict[str, Any]) -> None:
    mine = {"figures/holiday.png": b"photo", "metrics.json": b"{}", "pairs.csv": b"a,b", "config.yaml": b"lr: 0.1"}
    (tmp_path / "figures").mkdir()
    for name, content in mine.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"no record of a job \(config\.yaml, figures, metrics\.json, pairs\.csv\)"):
        JobRecord(tmp_path).write_config(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"paths\.output_dir"), JobRecord(tmp_path).guard() as record:
        record.clear_results()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"figures", *mine}
    assert all((tmp_path / name).read_bytes() == content for name, content in mine.items())


@pytest.mark.parametrize(
    "name",
    [".hydra/config.yaml", "wandb/offline-run-1/run.wandb", "sae_match.log", ".status.0a1b.tmp.json", "mine.txt"],
)
def test_what_hydra_wandb_callbacks_and_an_interrupted_job_leave_is_no_reason_to_refuse(
    tmp_path: Path, config: dict[str, Any], name: str
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
    finished(tmp_path, config)
    assert status(tmp_path)["state"] == "done" and (tmp_path / name).exists()


def test_a_job_killed_between_its_configuration_and_its_status_may_be_replaced(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    JobRecord(tmp_path).write_config(yaml.safe_dump(config))
    (tmp_path / "figures").mkdir()
    finished(tmp_path, config)
    assert status(tmp_path)["state"] == "done"


@pytest.mark.parametrize("content", ["[]", "{", '{"state": "done"}', "\xff"])
def test_a_status_file_of_another_program_vouches_for_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"no record of a job \(status\.json\)"), JobRecord(tmp_path).guard():
        pass
    assert (tmp_path / "status.json").read_text(encoding="latin-1") == content


# -- results ---------------------------------------------------------------------------------------------


def test_metrics_are_sorted_plain_and_exact(tmp_path: Path) -> None:
    record = JobRecord(tmp_path)
    record.write_metrics(
        {"z": np.float32(0.5), "a": 1 / 3, "n": np.int64(7), "ok": np.bool_(True), "text": "x", "gone": None}
    )
    text = (tmp_path / "metrics.json").read_text()
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["a", "gone", "n", "ok", "text", "z"]
    assert json.loads(text) == {"a": 1 / 3, "gone": None, "n": 7, "ok": True, "text": "x", "z": 0.5}


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), np.float32("inf")])
def test_a_metric_that_is_no_number_is_an_error_that_loses_nothing(tmp_path: Path, wrong: float) -> None:
    with pytest.raises(ValueError, match=r"not finite.*delta_loss/layer_drop"):
        JobRecord(tmp_path).write_metrics({"matching_score": 0.4, "delta_loss/layer_drop": wrong})
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == {"matching_score": 0.4, "delta_loss/layer_drop": None}


def test_a_metric_must_be_a_scalar(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="scores"):
        JobRecord(tmp_path).write_metrics({"scores": np.zeros(3)})


def test_features_round_trip(tmp_path: Path) -> None:
    features = pd.DataFrame({"layer": [1, 1], "feature": [0, 1], "partner": [1, -1], "mse": np.float32([0.1, np.nan])})
    JobRecord(tmp_path).write_table(FEATURES, features)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "features.parquet"), features)


def test_paths_of_permutations_and_figures(tmp_path: Path) -> None:
    record = JobRecord(tmp_path)
    assert record.permutation_path(3, 14) == tmp_path / "permutations" / "layer_03_to_14.safetensors"
    assert record.figure_path("overview") == record.figure_path("overview.png") == tmp_path / "figures" / "overview.png"
    assert (tmp_path / "permutations").is_dir() and (tmp_path / "figures").is_dir()
    with pytest.raises(ValueError, match="figure name"):
        record.figure_path("../overview")


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
