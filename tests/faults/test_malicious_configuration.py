"""Configurations that would run code or carry a secret into the record: refused before Hydra writes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sae_match import UserError
from sae_match.app import run_command
from sae_match.config.compose import config_directory, register_schemas, to_dataclass
from sae_match.config.composition_guard import guarded_composition
from sae_match.config.schema import Config
from sae_match.experiment import run

KEY = "sk-abcdefghijklmnopqrstuvwx"


def composed(*overrides: str) -> Config:
    register_schemas()
    with guarded_composition(), initialize_config_dir(str(config_directory()), version_base="1.3"):
        return to_dataclass(compose("config", ["paths.output_dir=out", *overrides]), Config)


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks.x._target_=sae_match.app.sys.exit",
        "+hydra.callbacks.x._target_=sae_match.app.main",
        "+hydra.callbacks.x={_target_:subprocess.Popen,args:[touch,canary]}",
        "+hydra.launcher.x._target_=os.system",
        "hydra.sweeper._target_=subprocess.Popen",
        "hydra.job_logging.handlers.console.class=subprocess.Popen",
        "+hydra.job_logging.handlers.console.stream=ext://os.environ",
        "+sae._target_=os.system",
        "+model.max_memory._target_=os.system",
    ],
)
def test_targets(override: str) -> None:
    with pytest.raises(UserError, match="the configuration names code to run"):
        composed(
            override.replace("+hydra.job_logging.handlers.console.stream", "hydra.job_logging.handlers.console.stream")
        )


EVIL = "pathlib.Path.touch"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"_target_: {EVIL}", "_target_"),
        (f"# @package _global_\nhydra:\n  callbacks:\n    x: {{_target_: {EVIL}, self: canary}}", "names code to run"),
        (f"# @package _global_\nhydra:\n  job_logging:\n    handlers: {{x: {{'()': {EVIL}}}}}", "names code to run"),
        ("!!python/object/apply:pathlib.Path.touch [canary]", "python/object"),
        ("name: !!python/name:os.system", "python/name"),
        ("name: ${eval:'1+1'}\nroot: /x\ndialect: native\nlast_layer: 3", "eval"),
        ("name: [", "cannot be composed"),
        ("name: \x01", "cannot be composed"),
        ("[" * 5000, "nested deeper"),
        ("surprise: 1", "surprise"),
    ],
)
def test_a_configuration_file_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    """As the command meets it: one message, exit code 2, nothing run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    (tmp_path / "conf" / "sae").mkdir(parents=True)
    (tmp_path / "conf" / "sae" / "evil.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: composed("sae=evil", f"hydra.searchpath=[{tmp_path / 'conf'}]"))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "evil.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match="cannot be composed"):
        composed("sae=evil", f"hydra.searchpath=[{tmp_path}]")


def test_a_group_given_as_a_number_is_a_message_not_a_traceback() -> None:
    """Found by fuzzing."""
    with pytest.raises(UserError, match="Config group override must be a string"):
        composed("matching=0")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (f"judging.api_key_variable={KEY}", "judging.api_key_variable"),
        ("judging.api_key_variable=abc-123", "judging.api_key_variable"),
        ("judging.api_key_variable=" + "0123456789abcdef" * 2 + "01234567", "judging.api_key_variable"),
        ("judging.api_key_variable=a1b2c3d4e5f6a7b8c9d0a1b2c3d4", "judging.api_key_variable"),
        ("judging.base_url=https://me:hunter22@example.org/v1", "judging.base_url"),
        (f"model.name={KEY}", "model.name"),
        ("tracking.tags=[hf_abcdefghijklmnopqrst]", "tracking.tags"),
        ("model.name=${oc.env:PATH}", "model.name"),
        ("paths.cache_dir=${oc.env:MY_TOKEN}", "paths.cache_dir"),
        ("sae.root=/data/s3cret-value/x", "sae.root"),
    ],
)
def test_secrets(monkeypatch: pytest.MonkeyPatch, override: str, key: str) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as refused:
        composed(override)
    for secret in (KEY, "hunter22", "s3cret-value", "hf_abcdefghijklmnopqrst", "abc-123"):
        assert secret not in str(refused.value)


def test_paths_from_the_environment_and_names_of_variables_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", "/data")
    cfg = composed("sae.root='${oc.env:MY_DATA}/saes'", "judging.api_key_variable=OPENAI_API_KEY")
    assert cfg.sae.root == "/data/saes" and cfg.judging.api_key_variable == "OPENAI_API_KEY"


def test_a_job_from_python_writes_no_record_of_a_key(tmp_path: Path) -> None:
    cfg = composed("evaluation=weights_only")
    cfg.paths.output_dir, cfg.judging.api_key_variable = str(tmp_path / "out"), KEY
    with pytest.raises(UserError, match="api_key_variable"):
        run(cfg)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_nothing_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real entry point, in this process: neither .hydra nor a log nor multirun.yaml is there afterwards."""
    from sae_match import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sae-match", "evaluation=weights_only", f"judging.api_key_variable={KEY}"])
    for more in ([], ["-m", "seed=1,2"]):
        monkeypatch.setattr("sys.argv", ["sae-match", f"judging.api_key_variable={KEY}", *more])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code in (1, 2)
        assert KEY not in capsys.readouterr().err
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
