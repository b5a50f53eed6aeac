"""The pages are true: their examples run (the library's: `test_wheel.py`), their commands compose, names exist."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from pydoc import locate

import pytest
import torch

from sae_match import Permutation
from sae_match.rules import check_config
from sae_match.saes import save_native
from tests.builders import random_sae
from tests.command import run_command
from tests.config.test_configuration import composed
from tests.experiments import jobs

PAGES = [
    "README.md", "src/sae_match/README.md", "src/sae_match/assets/smollm2_135m/README.md", "tests/faults/README.md",
    "tests/benchmarks/README.md", "multirun/README.md", "multirun/WANDB.md", "multirun/sample/README.md",
]  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `sae-match` command; a line that ends with a backslash goes on."""
    lines = re.sub(r"\\\n", " ", "\n".join(blocks(page, "sh"))).splitlines()
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sae-match ")]
    return [[word for word in words if word != "-m"] for words in found]


def test_brackets_are_quoted_for_the_shell(repository: Path) -> None:
    """zsh takes [a] for a pattern and refuses the command."""
    pages = [*PAGES, "conf/README.md", *(repository / "conf").rglob("*.yaml")]
    text = "\n".join((repository / page).read_text(encoding="utf-8") for page in pages)
    assert re.findall(r"(?:^|[\s`])[\w./+]+=\[[^\s`]*\](?=[\s`.]|$)", text, flags=re.M) == []


def test_the_readme_is_short(repository: Path) -> None:
    lines = (repository / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 160


def test_the_extension_example_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = repository / "README.md"
    (tmp_path / "my_package.py").write_text(blocks(page, "python")[1], encoding="utf-8")
    (control,), controls = blocks(page, "yaml"), tmp_path / "mine" / "evaluation" / "controls"
    controls.mkdir(parents=True)
    (controls / "mine.yaml").write_text(control, encoding="utf-8")
    for layer in (0, 1):
        save_native(random_sae(24, 16, seed=layer), tmp_path / "saes" / f"layer_{layer:02d}.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    line = re.sub(r"\\\n", " ", blocks(page, "sh")[-1])
    assert line.startswith("PYTHONPATH=. sae-match --config-dir mine ")
    done = run_command(
        *shlex.split(line)[2:], "evaluation=weights_only", "sae=native", "sae.root=saes", "layers.pair=0",
        "hydra.run.dir=out", "device=cpu", cwd=tmp_path, env={"SAE_MATCH_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.code == 0, done.err
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"close", "close/mine", "close/random", "decoder_cosine/mine"} <= numbers.keys()
    found = Permutation.load(tmp_path / "out" / "permutations" / "layer_00_to_01.safetensors")
    assert torch.equal(found.indices.sort().values, torch.arange(24))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_composes_into_a_job_that_breaks_no_rule(repository: Path, page: str) -> None:
    for words in commands(repository / page):
        for job in jobs([word for word in words if not word.startswith(("dry_run", "launcher", "hydra."))])[:1]:
            check_config(composed(*job))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(repository: Path, page: str) -> None:
    text = (repository / page).read_text(encoding="utf-8")
    missing = [name for name in re.findall(r"\bsae_match(?:\.\w+)+", text) if not name.startswith("sae_match.v1")
               and locate(name) is None]  # fmt: skip
    links = [link for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)]
    missing += [link for link in links if not ((repository / page).parent / link).exists()]
    missing += [
        name
        for name in re.findall(r"`(?:tests|conf|src)/[\w./]+`", text)
        if not (repository / name.strip("`")).exists()
    ]
    assert not missing
