"""What users bring along: sweepers, launchers, callbacks and variables of their own, as with any Hydra command."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins

from tests.command import run_command
from tests.experiment.conftest import model_directory, random_saes, text_directory  # noqa: F401 - fixtures

PLUGIN = '''
import json
from pathlib import Path
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Halving(Sweeper):
    """Like an optimizer's: it draws the values itself, in batches, and maximizes what the jobs return."""

    def __init__(self, sampler, steps):
        self.sampler, self.steps = sampler, steps

    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments):
        fixed = [a for a in arguments if "interval(" not in a]
        (drawn,) = [a.partition("=")[0] for a in arguments if "interval(" in a]
        values = {}
        for step in range(self.steps):
            value = self.sampler.draw(step)
            (job,) = self.launcher.launch([[*fixed, f"{drawn}={value}"]], initial_job_idx=step)
            values[value] = float(job.return_value)
        best = max(values, key=values.get)
        (Path(self.config.hydra.sweep.dir) / "best.json").write_text(json.dumps([best, values]))

class Counting(BasicLauncher):
    """Writes down how many jobs it has launched."""

    def launch(self, job_overrides, initial_job_idx):
        path = Path(self.config.hydra.sweep.dir) / "launched.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{len(job_overrides)} ")
        return super().launch(job_overrides, initial_job_idx)
'''
PACKAGE = '''
import os
from pathlib import Path
from hydra.experimental.callback import Callback

class Sampler:
    def draw(self, step):
        return 0.5**step

class Noting(Callback):
    """Leaves a file with a variable that the configuration sets, and how the job ended."""

    def on_job_start(self, config, **_):
        Path(config.hydra.runtime.output_dir, "start.txt").write_text(os.environ["MY_VARIABLE"])

    def on_job_end(self, config, job_return, **_):
        Path(config.hydra.runtime.output_dir, "end.txt").write_text(job_return.status.name)
'''
CONFIGURATION = {
    "hydra/sweeper/halving": "_target_: hydra_plugins.my_plugin.Halving\nsteps: 3\nsampler:\n"
    "  _target_: my_sampling.Sampler\n",
    "hydra/launcher/counting": "_target_: hydra_plugins.my_plugin.Counting\n",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a plugin, a package and the configuration that names them."""
    (tmp_path / "site" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "site" / "hydra_plugins" / "my_plugin.py").write_text(PLUGIN)
    (tmp_path / "site" / "my_sampling.py").write_text(PACKAGE)
    for name, text in CONFIGURATION.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    plugin = importlib.import_module("hydra_plugins.my_plugin")
    for kind in (plugin.Halving, plugin.Counting):  # as Hydra itself does when a process begins
        Plugins.instance().register(kind)
    yield tmp_path
    for name in ("hydra_plugins.my_plugin", "my_sampling"):
        sys.modules.pop(name, None)


def small(saes: Path) -> list[str]:
    return ["sae=native", f"sae.root={saes}", "layers.first=0", "layers.last=1", "tracking=none", "device=cpu"]


def test_a_sweeper_that_optimizes(place: Path, random_saes: Path, model_directory: Path, text_directory: Path) -> None:  # noqa: F811
    done = run_command(
        "-m", *small(random_saes), "model=local", f"model.path={model_directory}", "dataset=local",
        f"dataset.path={text_directory}", "dataset.documents=10", "dataset.window_tokens=12", "evaluation.min_count=1",
        "evaluation.bootstrap_samples=20", "hydra/sweeper=halving", "hydra/launcher=counting",
        "matching.weights.b_enc=interval(0,1)", "hydra.sweep.dir=sweep",
        f"--config-dir={place / 'conf'}", cwd=place, env={"SAE_MATCH_CACHE": str(place / "cache")},
    )  # fmt: skip
    assert done.code == 0, done.err
    best, values = json.loads((place / "sweep" / "best.json").read_text())
    scores = [
        json.loads((place / "sweep" / str(job) / "metrics.json").read_text())["matching_score"] for job in range(3)
    ]
    assert list(values) == ["1.0", "0.5", "0.25"] and list(values.values()) == scores
    assert values[str(best)] == max(scores)
    assert (place / "sweep" / "launched.txt").read_text() == "1 1 1 "
    rows = json.loads((place / "sweep" / "sweep.json").read_text())
    assert [row["state"] for row in rows] == ["done"] * 3
    assert [row["overrides"][-1] for row in rows] == [f"matching.weights.b_enc={value}" for value in values]
    assert "3 jobs: 3 done" in done.out and "job 3\n" in done.err


def test_callbacks_and_variables(place: Path, random_saes: Path) -> None:  # noqa: F811
    words = ["sae.root=${oc.env:MY_SAES}", "+hydra.callbacks.mine._target_=my_sampling.Noting", "hydra.run.dir=out",
             "+hydra.job.env_set.MY_VARIABLE=set", 'seed="${oc.decode:${oc.env:MY_SEED,3}}"']  # fmt: skip
    fixed = [word for word in small(random_saes) if not word.startswith("sae.root")]
    done = run_command(
        *fixed, *words, "evaluation=weights_only", cwd=place,
        env={"SAE_MATCH_CACHE": str(place / "cache"), "MY_SAES": str(random_saes)},
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [(place / "out" / f"{name}.txt").read_text() for name in ("start", "end")] == ["set", "COMPLETED"]
    text = (place / "out" / "config.yaml").read_text()
    assert f"root: {random_saes}" in text and "seed: 3" in text
