"""Classes of packages that nobody trusts, and secrets: refused before anything is built or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_match import UserError
from sae_match.app.trust import check_trust, secrets_in
from tests.command import run_command

OPENAI, HF = "sk-proj-" + "a1B2" * 10, "hf_" + "aB3" * 12


def trusted(target: str, *packages: str) -> None:
    check_trust(OmegaConf.create({"metrics": [{"_target_": target}], "trusted_packages": list(packages)}))


def test_a_target_of_a_package_that_is_not_trusted() -> None:
    with pytest.raises(UserError, match=r"metrics\.0\._target_=os\.system .*'trusted_packages=\[os\]'"):
        trusted("os.system", "o", "os_", "my_package")


@pytest.mark.parametrize("target", ["sae_match.metrics.bootstrap.Bootstrap", "my_package.MyScore", "my_package.a.Mine"])
def test_targets_that_may_be_built(target: str) -> None:
    trusted(target, "my_package")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sae_match.files.os.remove", "sae_match defines nothing of that name"),
        ("sae_match_evil.run", "not of sae_match"),
        ("sae_match.nowhere.Thing", "nowhere"),
    ],
)
def test_what_our_modules_only_import_is_not_ours(target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trusted(target)


def test_the_command_refuses_before_a_record_is_begun(tmp_path: Path) -> None:
    done = run_command("sae._target_=os.system", "evaluation=weights_only", "paths.output_dir=out", cwd=tmp_path)
    assert done.code == 2 and "sae._target_=os.system is not of sae_match" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "value",
    [
        OPENAI,
        HF,
        f"https://example.org/v1?key={OPENAI}",
        "https://me:hunter22@example.org/v1",
        "x s3cret-value-of-mine",
    ],
)
def test_secrets(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-value-of-mine")
    (problem,) = secrets_in({"judging": {"base_url": value}, "sae": {"name": "fine", "layers": [1, None]}})
    assert problem.startswith("judging.base_url: looks like a key")
    assert value not in problem


@pytest.mark.parametrize("name", ["hf_LlamaForCausalLM", "hf_TinyLlama11BChat", "sk-wikipedia-articles", HF])
def test_a_folder_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert secrets_in({"sae": {"root": name}, "model": {"path": f"/not/here/yet/{name}"}}) == []


@pytest.mark.parametrize(
    "words",
    [
        [f"model.name={OPENAI}"],
        [f"+hydra.job.env_set.KEY={OPENAI}"],
        ["-m", f"model.name={OPENAI}", "seed=1,2"],
        ["-m", f"model.name=a,{OPENAI}"],
    ],
)
def test_a_secret_is_written_nowhere(tmp_path: Path, words: list[str]) -> None:
    done = run_command(*words, cwd=tmp_path)
    assert done.code == 2 and "looks like a key" in done.err
    assert OPENAI not in done.err + done.out
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_secret_from_the_environment_does_not_reach_the_record(tmp_path: Path) -> None:
    done = run_command("model.name=${oc.env:MINE}", "paths.output_dir=out", cwd=tmp_path, env={"MINE": HF})
    assert done.code == 2 and "model.name: looks like a key" in done.err
    assert not any(HF.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
