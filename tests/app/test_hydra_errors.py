"""What Hydra refuses, in the words of this command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sae_match.app.errors import did_you_mean, not_by_name
from tests.command import run_command


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layers.frist=1", "unknown configuration key: layers.frist (did you mean layers.first?)"),
        ("first=3", "unknown configuration key: first (did you mean layers.first?)"),
        ("layer.first=3", "unknown configuration key: layer.first (did you mean layers.first?)"),
        ("mathcing=both", "unknown configuration key: mathcing (did you mean matching?)"),
        ("matching.xyz=1", "unknown configuration key: matching.xyz"),
        ("+layers.frist=1", "unknown configuration key: layers.frist (did you mean layers.first?). `sae-match --cfg "
         "job` prints the keys that exist."),
        ("model.max_memory.cpu=1GiB", "unknown configuration key: model.max_memory.cpu. model.max_memory takes entries "
         "of any name, added with a plus: +model.max_memory.cpu=VALUE"),
        ("sae.filename=layer_{layer}.safetensors", "sae.filename=layer_{layer}.safetensors: a value with such "
         "characters is quoted twice, for the shell and for Hydra: 'sae.filename=\"layer_{layer}.safetensors\"'"),
        ("tracking.tags=mine", "tracking.tags=mine: a list has brackets: 'tracking.tags=[mine]'"),
        ("composition.starts=13", "composition.starts=13: a list has brackets: 'composition.starts=[13]'"),
        ("solver.blok_rows=3", "unknown configuration key: solver.blok_rows (did you mean solver.block_rows?)"),
        ("matching.metric=all", "matching.metric=all: must be 'both', 'decoder' or 'encoder'"),
        ("seed", "seed: an argument is a key and a value, key=value"),
        ("evaluation.controls=all", "evaluation.controls=all: the options of a group are chosen with a slash: "
         "'evaluation/controls=[all]'"),
        ("evaluation.controls=[random, greedy]", "evaluation.controls=[random, greedy]: the options of a group are "
         "chosen with a slash: 'evaluation/controls=[random,greedy]'"),
        ("evaluation.splices=mine", "evaluation.splices=mine: takes entries of any name, added with a plus: "
         "+evaluation.splices.NAME._target_=my_package.MyClass"),
        ("metrics=mine", "metrics=mine: takes entries of any name, added with a plus: "
         "+metrics.NAME._target_=my_package.MyClass"),
        ("matching=0", "Config group override must be a string or a list. Got int; a group takes the name of one of "
         "its options"),
    ],
)  # fmt: skip
def test_what_to_type_instead(tmp_path: Path, override: str, message: str) -> None:
    done = run_command(override, "evaluation=weights_only", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"error: {message}"


def test_texts_to_train_on_are_options() -> None:
    said = "datasets=mine: takes texts of any name, each an option of the group: +dataset@datasets.NAME=mine"
    assert not_by_name("datasets", "mine") == said


def test_the_quoted_form_is_the_right_one(tmp_path: Path) -> None:
    done = run_command('sae.filename="layer_{layer}.safetensors"', "--cfg", "job", "--package", "sae", cwd=tmp_path)
    assert done.code == 0 and "filename: layer_{layer}.safetensors" in done.out


def test_a_yaml_file_that_does_not_parse(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "mine.yaml").write_text("name: [")
    done = run_command("sae=mine", f"--config-dir={tmp_path}", cwd=tmp_path)
    assert done.code == 2 and "mine.yaml" in done.err and "Traceback" not in done.err


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert did_you_mean("zzz", ["layers", "layers.first"]) == did_you_mean("zzz", []) == ""


def test_what_plain_values_show_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import atexit, sys; from sae_match.app.main import main; "
        "atexit.register(lambda: print('torch' in sys.modules)); main()"
    )
    arguments = ["layers.pair=40", "device=tpu", "seed=-1", "sae.site=mlp_out", "tracking=none"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    for words in ("layers.first=40, layers.last=41: the SAEs smollm2_135m cover layers 0..29", "device=tpu: must be",
                  "seed=-1: must be 0 or more", "sae.site=mlp_out: activations"):  # fmt: skip
        assert words in done.stderr, words
