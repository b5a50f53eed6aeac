"""`dry_run=true` on the command line: the plan on standard output, an honest exit code, and nothing on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_match.saes import save_native
from tests.builders import random_sae
from tests.cli.test_command_line import run_in, weights_only


@pytest.fixture
def saes(tmp_path: Path) -> Path:
    root = tmp_path / "saes"
    for layer in range(3):
        save_native(random_sae(seed=layer), root / f"layer_{layer:02d}.safetensors")
    return root


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_plan_that_works(tmp_path: Path, saes: Path) -> None:
    before = names(tmp_path)
    done = run_in(tmp_path, *weights_only(saes, "dry_run=true", "hydra.run.dir=mine"))
    assert done.code == 0, done.err
    for words in ("== Configuration ==", "metric: both", "Jobs: 2 layer pairs", "0->1, 1->2", "d_model 8, 24 features",
                  "match a pair", "output_dir: mine", "Problems: none"):  # fmt: skip
        assert words in done.out, words
    assert names(tmp_path) == before


def test_a_plan_that_does_not_work_lists_all_reasons(tmp_path: Path, saes: Path) -> None:
    (saes / "layer_01.safetensors").unlink()
    before = names(tmp_path)
    done = run_in(tmp_path, *weights_only(saes, "dry_run=true", "paths.cache_dir=/proc/absent"))
    assert done.code == 2
    assert "== Problems: 2 ==" in done.out
    assert "layer_01.safetensors does not exist" in done.out and "paths.cache_dir=DIR" in done.out
    assert "the job cannot start: 2 problems" in done.err and "Traceback" not in done.err
    assert names(tmp_path) == before


def test_every_job_of_a_sweep_prints_its_plan(tmp_path: Path, saes: Path) -> None:
    before = names(tmp_path)
    arguments = weights_only(saes, "dry_run=true", "matching=decoder,encoder")
    done = run_in(tmp_path, "-m", *arguments)
    assert done.code == 0, done.err
    assert done.out.count("== Jobs: ") == done.out.count("Problems: none") == 2
    assert "matching decoder, folding" in done.out and "matching encoder, folding" in done.out
    assert "== Configuration ==" not in done.out  # the overrides of each job are there
    assert names(tmp_path) == before

    arguments[3] = "layers.last=7,2"  # layer 3 has no file
    done = run_in(tmp_path, "-m", *arguments[:5], "dry_run=true")
    assert done.code == 2
    assert done.out.count("== Problems: ") == 2 and done.out.count("Problems: none") == 1
    assert names(tmp_path) == before


def test_the_demo_has_a_plan(tmp_path: Path) -> None:
    done = run_in(tmp_path, "dry_run=true")
    assert done.code == 0, done.err
    assert "7 layer pairs" in done.out and names(tmp_path) == []


def test_a_folder_of_the_users_own_is_refused_by_plan_and_job_and_stays(tmp_path: Path, saes: Path) -> None:
    mine = tmp_path / "paper" / "figures" / "holiday.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"photo")
    for dry in ("true", "false"):
        arguments = weights_only(saes, f"dry_run={dry}", "tracking=none", "hydra.run.dir=paper")
        done = run_in(tmp_path, *arguments)
        assert done.code == 2 and "Traceback" not in done.err
        assert "paper holds files but no record of a job (figures)" in done.out + done.err
    assert mine.read_bytes() == b"photo"


def test_a_sweep_that_goes_on_in_its_own_directory_is_planned_there(tmp_path: Path, saes: Path) -> None:
    """A job of another configuration has number 0 there: the real run goes beside it, and so does the plan."""
    sweep = ["-m", "tracking=none", "hydra.sweep.dir=sweep"]
    assert run_in(tmp_path, *sweep, *weights_only(saes, "matching=decoder")).code == 0
    before = names(tmp_path)
    done = run_in(tmp_path, *sweep, *weights_only(saes, "matching=encoder", "dry_run=true"))
    assert done.code == 0, done.out + done.err
    assert " in sweep/0-" in done.out and names(tmp_path) == before
