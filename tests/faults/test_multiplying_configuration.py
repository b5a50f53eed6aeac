"""Configurations of some lines that would grow without end: refused in little memory, by the command itself."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from sae_match import UserError
from sae_match.config.bounded_resolution import bounded_resolution, resolved_where_possible
from sae_match.config.bounded_yaml import MAX_CHARACTERS, MAX_DEPTH, MAX_ENTRIES, bounded_yaml
from sae_match.config.sweep_size import refuse_endless_sweep

MEMORY = 3 << 30
"""Of address space. The command without torch takes 0.3 GiB; any of these configurations would take terabytes."""


def aliases(levels: int = 12, width: int = 10) -> str:
    """The "billion laughs": every line names the one above ten times."""
    lines = ["x0: &a0 [x]"]
    lines += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merges(levels: int = 30) -> str:
    """The same through merge keys, which the YAML reader writes out by itself."""
    return "x0: &a0 {k: v}\n" + "\n".join(f"x{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, levels))


def interpolations(reference: str) -> str:
    """The same with interpolations, in keys that exist."""
    keys = ["name", "root", "repo_id", "revision", "folder"]
    lines = [f"{key}: '{reference.format(below) * 40}'" for key, below in pairwise(keys)]
    return "\n".join([*lines, f"{keys[-1]}: {'x' * 1000}"])


FILES = {
    "aliases": (aliases(), "10000 entries"),
    "merge keys": (merges(), "10000 entries"),
    "an alias of itself": ("name: &a [*a]", "nested deeper"),
    "a mapping of itself": ("name: &a {b: *a}", "nested deeper"),
    "a long chain of aliases": (aliases(levels=900, width=1), "nested deeper"),
    "flow lists": ("[" * 200_000, "nested deeper"),
    "block lists": ("- " * 200_000, "nested deeper"),
    "a long file": ("name: " + "x" * 1_100_000, "more than 1000000 characters"),
    "a number in base 60": ("name: 1" + ":59" * 200_000, "a number of 600001 characters"),
    "a long text": ("name: " + "x" * 30_000, "sae.name: 30000 characters"),
    "references": (interpolations("${{sae.{}}}"), "name one another so often"),
    "oc.select": (interpolations("${{oc.select:sae.{}}}"), "name one another so often"),
    "nested interpolations": ("name: '" + "${oc.select:" * 1500 + "a" + "}" * 1500 + "'", "nests too deeply"),
    "YAML in a text": ("name: '${oc.create:\"a: &a [x]\"}'", "${oc.create:...} is refused"),
    "itself": ("defaults:\n" + "\n".join(f"  - bomb@p{n}" for n in range(10)), "includes itself"),
}


def command(tmp_path: Path, overrides: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sae_match", *overrides, f"hydra.run.dir={tmp_path / 'out'}",
         f"hydra.sweep.dir={tmp_path / 'out'}", *options],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)), check=False,
    )  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess[str], message: str, tmp_path: Path) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr) < 5000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    text, message = FILES[kind]
    (tmp_path / "conf" / "sae").mkdir(parents=True)
    (tmp_path / "conf" / "sae" / "bomb.yaml").write_text(text)
    assert_refused(command(tmp_path, ["sae=bomb"], f"--config-dir={tmp_path / 'conf'}"), message, tmp_path)


OVERRIDES = {
    "YAML in a text": (["sae.name='${oc.create:\"a: &a [x]\"}'"], "${oc.create:...} is refused"),
    "lists": (["sae.name=" + "[" * 3000 + "]" * 3000], "nests too deeply"),
    "references": (
        [*(f"sae.{key}='{f'${{sae.{below}}}' * 40}'" for key, below in
           [("name", "root"), ("root", "repo_id"), ("repo_id", "revision"), ("revision", "folder")]),
         "sae.folder=" + "x" * 1000],
        "name one another so often",
    ),
    "a range": (["seed=range(0,10000000000)"], "1e+10 jobs"),
    "beside an empty range": (["seed=range(0,10000000000)", "layers.first=range(1,0)"], "1e+10 jobs"),
    "a range of fractions": (["seed=range(0,1,1e-12)"], "1e+12 jobs"),
    "a product": ([f"{key}=range(0,1000)" for key in ("seed", "layers.first", "layers.last")], "1e+09 jobs"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OVERRIDES)
def test_overrides_are_refused(kind: str, tmp_path: Path) -> None:
    overrides, message = OVERRIDES[kind]
    done = command(tmp_path, overrides, *(["-m"] if message.endswith("jobs") else []))
    assert_refused(done, message, tmp_path)


def test_defaults_lists_that_multiply(tmp_path: Path) -> None:
    """Nine files, each of which includes the next one ten times."""
    (tmp_path / "conf" / "sae").mkdir(parents=True)
    for number in range(9):
        below = "\n".join(f"  - bomb{number + 1}@p{n}" for n in range(10))
        (tmp_path / "conf" / "sae" / f"bomb{number}.yaml").write_text(f"defaults:\n{below}")
    (tmp_path / "conf" / "sae" / "bomb9.yaml").write_text("name: x")
    done = command(tmp_path, ["sae=bomb0"], f"--config-dir={tmp_path / 'conf'}")
    assert_refused(done, "more than 1000 files", tmp_path)


def test_a_sweep_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "bomb.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: 'range(0,10000000000)'}}}"
    )
    done = command(tmp_path, ["experiment=bomb"], f"--config-dir={tmp_path / 'conf'}")
    assert_refused(done, "1e+10 jobs", tmp_path)


# -- the bounds themselves --------------------------------------------------------------------------------


def expanded(value: object) -> int:
    """Entries of nested dicts and lists, by the plain definition."""
    if isinstance(value, dict):
        return 1 + sum(1 + expanded(entry) for entry in value.values())
    return 1 + sum(expanded(entry) for entry in value) if isinstance(value, list) else 1


@given(st.integers(1, 6), st.integers(1, 12))
def test_what_passes_is_what_is_small_written_out(levels: int, width: int) -> None:
    text = aliases(levels, width)
    sizes = [2]  # [x]
    for _ in range(1, levels):
        sizes.append(1 + width * sizes[-1])
    entries = 1 + sum(1 + size for size in sizes)
    with bounded_yaml():
        if entries > MAX_ENTRIES:
            with pytest.raises(UserError, match="aliases"):
                OmegaConf.create(text)
        else:
            assert expanded(OmegaConf.to_container(OmegaConf.create(text))) == entries


def test_the_largest_file_passes_and_one_more_entry_does_not() -> None:
    """A mapping, its key and its list are three entries."""
    with bounded_yaml():
        assert len(OmegaConf.create("a: [" + "1, " * (MAX_ENTRIES - 3) + "]").a) == MAX_ENTRIES - 3
        with pytest.raises(UserError):
            OmegaConf.create("a: [" + "1, " * (MAX_ENTRIES - 2) + "]")
        OmegaConf.create("[" * MAX_DEPTH + "]" * MAX_DEPTH)
        with pytest.raises(UserError):
            OmegaConf.create("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
        with pytest.raises(UserError, match="characters"):
            OmegaConf.create("a: '" + "x" * MAX_CHARACTERS + "'")
    assert len(OmegaConf.create("a: [" + "1, " * MAX_ENTRIES + "]").a) == MAX_ENTRIES  # unbounded again


def test_interpolations_are_paid_by_what_they_yield() -> None:
    """1,000 references to 10 characters at 64 each pass, to 1,000 characters they do not."""
    for length, passes in ((10, True), (1000, False)):
        cfg = OmegaConf.create({"a": "x" * length, **{f"b{n}": "${a}" for n in range(1000)}})
        if passes:
            with bounded_resolution():
                assert resolved_where_possible(cfg)["b999"] == "x" * length
            continue
        with pytest.raises(UserError, match="interpolations"), bounded_resolution():
            resolved_where_possible(cfg)


def test_what_cannot_be_resolved_yet_stays() -> None:
    cfg = OmegaConf.create({"a": "${nowhere}", "b": ["${a}", "${c.d}"], "c": {"d": 3}, "e": None, "f": "???"})
    assert resolved_where_possible(cfg) == {
        "a": "${nowhere}", "b": ["${a}", 3], "c": {"d": 3}, "e": None, "f": "???",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sweeper", "refused"), [("core.BasicSweeper", True), ("hydra_plugins.drawing.Drawing", False)]
)
def test_only_a_sweep_that_takes_every_choice_is_counted(sweeper: str, refused: bool) -> None:
    def swept(override: str) -> DictConfig:
        return OmegaConf.create({"hydra": {"sweeper": {"_target_": sweeper}, "overrides": {"task": [override]}}})

    with pytest.raises(UserError, match="1e\\+06 jobs") if refused else nullcontext():
        refuse_endless_sweep(swept("seed=range(0,1000000)"))
    with pytest.raises(UserError):
        refuse_endless_sweep(swept("seed=range(0,10,0)"))
