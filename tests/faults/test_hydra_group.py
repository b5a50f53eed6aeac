"""Hydra's own group and interpolations: every way found from a configuration to code, to a file or to a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from sae_match import UserError
from sae_match.config.compose import config_directory, register_schemas
from sae_match.config.composition_guard import guarded_composition
from sae_match.config.interpolations import interpolation_problems

TOUCH = "pathlib.Path.touch"
SECRET = "abcdef0123456789abcd"


def composed(tmp_path: Path, text: str = "", *overrides: str) -> None:
    """As the command composes, with an experiment of the user's own."""
    (tmp_path / "experiment").mkdir(exist_ok=True)
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}")
    register_schemas()
    with guarded_composition(), initialize_config_dir(str(config_directory()), version_base="1.3"):
        compose("config", ["experiment=own", f"hydra.searchpath=[{tmp_path}]", *overrides])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # What `logging` imports is not logging.
        ("hydra: {job_logging: {handlers: {x: {'()': logging.os.mkdir, path: canary}}}}", r"x\.\(\)=logging.os.mkdir"),
        ("hydra: {job_logging: {filters: {x: {'()': logging.Formatter}}}}", r"filters\.x"),
        ("hydra: {job_logging: {handlers: {x: {class: logging.handlers.SocketHandler, host: h, port: 1}}}}", "Socket"),
        ("hydra: {job_logging: {formatters: {file: {class: logging.FileHandler}}}}", r"formatters\.file"),
        # What is checked is what Hydra will see, not what is written there.
        (f"hydra: {{callbacks: {{y: {{x: {{'()': {TOUCH}, self: canary}}}}}}, "
         "job_logging: {handlers: '${hydra.callbacks.y}'}}", r"handlers\.x"),
        ("sae: {name: 'ext://os.environ'}\nhydra: {job_logging: {handlers: {console: {stream: '${sae.name}'}}}}",
         "ext://os.environ"),
        ("hydra: {job_logging: {handlers: {console: {stream: 'cfg://root'}}}}", "cfg://root"),
        # What only a job that has a number would see.
        (f"hydra: {{callbacks: {{y0: {{}}, y1: {{x: {{'()': {TOUCH}, self: canary}}}}}}, "
         "job_logging: {handlers: '${oc.select:hydra.callbacks.y${hydra.job.num}}'}}", "must be written out"),
        ("hydra: {callbacks: {y0: ext://sys.stdout}, "
         "job_logging: {handlers: {console: {stream: '${oc.select:hydra.callbacks.y${hydra.job.num}}'}}}}", "written"),
        ("hydra: {callbacks: {y0: {}, y1: {PATH: /tmp}}, "
         "job: {env_set: '${oc.select:hydra.callbacks.y${hydra.job.num}}'}}", "must be set in the shell"),
        # Text of one's choice in a file of one's choice.
        ("hydra: {job_logging: {formatters: {file: {format: 'touch canary # %(message)s'}}, "
         "handlers: {file: {filename: /tmp/.bashrc}}}}", "ends in .log"),
        # Structure out of text.
        (f"hydra: {{callbacks: {{x: '${{oc.decode:\"{{_target_: {TOUCH}, self: canary}}\"}}'}}}}", "oc.decode"),
        (f"hydra: {{callbacks: {{x: '${{oc.create:\"_target_: {TOUCH}\"}}'}}}}", "oc.create"),
        (f"hydra: {{callbacks: {{x: '${{oc.select:nowhere,{{_target_: {TOUCH}}}}}'}}}}", "mapping"),
        ("sae: {name: create}\nhydra: {callbacks: {x: '${oc.${sae.name}:\"a: 1\"}'}}", "is refused"),
        # Our own modules are not all callbacks, nor are all classes.
        ("hydra: {callbacks: {x: {_target_: sae_match.sweep.launch.Place}}}", "Place"),
        ("hydra: {callbacks: {x: {_target_: sae_match.__main__.main}}}", "__main__"),
        ("hydra: {sweeper: {_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncherConf}}", "LauncherConf"),
        # git runs what core.fsmonitor names, the loader what LD_PRELOAD names.
        ("hydra: {job: {env_set: {GIT_CONFIG_COUNT: '1'}}}", "GIT_CONFIG_COUNT"),
        ("hydra: {job: {env_set: {LD_PRELOAD: /tmp/x.so}}}", "LD_PRELOAD"),
        ("hydra: {job: {env_copy: [PATH]}}", "PATH"),
    ],
)  # fmt: skip
def test_code(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        composed(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "hydra: {job: {env_set: {OMP_NUM_THREADS: '2', HF_HOME: /data/hf}}}",
        "hydra: {job_logging: {handlers: {file: {filename: '${hydra.runtime.output_dir}/other.log', mode: w}}}}",
        "hydra: {job_logging: {handlers: {x: {class: logging.handlers.RotatingFileHandler, filename: a.log}}}}",
        "hydra: {job_logging: {formatters: {file: {'()': logging.Formatter, format: '%(message)s'}}}}",
        "hydra: {job_logging: {handlers: {console: {stream: ext://sys.stdout}}}}",
        "hydra: {run: {dir: 'out/${hydra.job.name}/${now:%Y}'}, sweep: {subdir: '${hydra.job.override_dirname}'}}",
        "judging: {description_chars: 20}",
        "sae: {root: '${oc.env:NO_SUCH_VARIABLE,${oc.env:HOME,.}}/{layer}'}",
    ],
)
def test_what_people_do_passes(tmp_path: Path, text: str) -> None:
    composed(tmp_path, text)


@pytest.mark.parametrize(
    "override",
    [
        "tracking.tags=['${oc.env:WANDB_API_KEY}']",
        "hydra.job.name=${oc.env:WANDB_API_KEY}",
        "hydra.run.dir='out/${oc.env:WANDB_API_KEY}'",
        "hydra.sweep.subdir='${oc.env:\"WANDB_API_KEY\"}'",
        f"hydra.job.name={SECRET}",
        "hydra.job.env_copy=[WANDB_API_KEY]",
        f"+hydra.job.env_set.WANDB_MODE={SECRET}",
        "sae.root='${oc.env:\"WANDB_API_KEY\"}'",
        "sae.root='${oc.env:${sae.name}}'",
        "hydra.job.name='${oc.env:${oc.select:hydra.callbacks.y${hydra.job.num}}}'",
        "sae.root='${oc.select:nowhere,${oc.env:${sae.name}}}'",
    ],
)
def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str) -> None:
    """Hydra writes hydra.yaml, overrides.yaml and a log named after the job, with its group's values."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with pytest.raises(UserError) as refused:
        composed(tmp_path, "sae: {name: WANDB_API_KEY}", override)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("text", ["${a}", "x${a.b}y", "${hydra:job.num}", "${now:%Y-%m}", "${oc.env:A,${oc.env:B,.}}/c",
                                  "a $ b", "costs $3", "${..a}", "${oc.select:a.b,-}", "${a[0]}"])  # fmt: skip
def test_interpolations_that_look_up(text: str) -> None:
    assert list(interpolation_problems({"k": text})) == []


@pytest.mark.parametrize(
    "text",
    ["${oc.create:a}", "${ oc.create :a}", "a${oc.decode:x}", "${oc.dict.values:a}", "${oc.env:${oc.create:a}}", "${",
     "${nowhere:a}", "${oc.${a}:b}", "${oc.select:a,{b:c}}", "${oc.select:a,[{b:c}]}", "${a}${eval:b}", "${oc.env:'}"],
)  # fmt: skip
def test_interpolations_that_do_more(text: str) -> None:
    (problem,) = interpolation_problems({"k": [{"l": text}]})
    assert problem.startswith("k.0.l: ")


def test_every_shipped_configuration_passes() -> None:
    """Each experiment and launcher as a single job, verbosity and scheme."""
    register_schemas()
    with guarded_composition(), initialize_config_dir(str(config_directory()), version_base="1.3"):
        from hydra.core.global_hydra import GlobalHydra

        loaded = 0
        for group in ("experiment", "verbosity", "scheme", "launcher"):
            for path in (config_directory() / group).glob("*.yaml"):
                if path.stem in ("ray",):  # a plugin that cannot be installed beside the others
                    continue
                hydra = GlobalHydra.instance().hydra
                assert hydra is not None
                cfg = hydra.compose_config("config", [f"{group}={path.stem}"], run_mode=RunMode.MULTIRUN)
                assert OmegaConf.is_config(cfg)
                loaded += 1
    assert loaded > 25


@pytest.mark.parametrize(
    ("field", "where"),
    [
        ("launcher: {comment: {}}", "launcher.comment"),
        ("launcher: {gres: {}}", "launcher.gres"),
        ("launcher: {partition: {}}", "launcher.partition"),
        ("launcher: {additional_parameters: {reservation: {}}}", "launcher.additional_parameters.reservation"),
        ("job: {name: {}}", "job.name"),
        ("sweep: {dir: {}}", "sweep.dir"),
        ("sweep: {subdir: {}}", "sweep.subdir"),
    ],
)
@pytest.mark.parametrize("end", ["\\n", "\\r", "\\u2028"])
def test_no_value_becomes_a_second_line_of_a_batch_script(tmp_path: Path, field: str, where: str, end: str) -> None:
    """submitit quotes what it writes into `#SBATCH` lines, but a line end in it begins a command."""
    text = "defaults: [override /hydra/launcher: submitit_slurm]\nhydra: {" + field.replace(
        "{}", f'"x{end}touch canary #"'
    )
    with pytest.raises(UserError, match=rf"hydra\.{where}: a value of several lines"):
        composed(tmp_path, text + "}")


def test_the_setup_of_a_launcher_has_lines(tmp_path: Path) -> None:
    lines = '["module load cuda\\nsource env/bin/activate"]'
    composed(tmp_path, f"defaults: [override /hydra/launcher: submitit_slurm]\nhydra: {{launcher: {{setup: {lines}}}}}")


@pytest.mark.parametrize("variable", ["SAE_MATCH_CACHE", "PYTORCH_CUDA_ALLOC_CONF", "TMPDIR", "CUDA_DEVICE_ORDER"])
def test_variables_that_users_need_may_be_set(tmp_path: Path, variable: str) -> None:
    composed(tmp_path, "", f"+hydra.job.env_set.{variable}=x")


def test_a_variable_that_says_where_a_secret_lies_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", "/scratch/someone")
    composed(tmp_path, "", "paths.cache_dir=/scratch/someone/cache")
    monkeypatch.setenv("HF_TOKEN", "/scratch/someone")
    with pytest.raises(UserError, match="HF_TOKEN"):
        composed(tmp_path, "", "paths.cache_dir=/scratch/someone/cache")


def test_a_long_list_of_values_is_no_problem() -> None:
    """Hydra joins all overrides into one text, which nobody wrote."""
    long = "seed=" + ",".join(str(n) for n in range(5000))
    assert list(interpolation_problems({"hydra": {"job": {"override_dirname": long}}})) == []
    assert len(list(interpolation_problems({"hydra": {"job": {"name": long}}}))) == 1
