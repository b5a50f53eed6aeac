"""Whole jobs whose tables, headline numbers and permutations must stay what they are while the code changes.

`python -m tests.golden.test_golden NAME...` writes the golden files anew, for a change that is meant to move numbers;
the commit then says which and why.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_match.matching import Permutation
from tests.command import run_command
from tests.experiment.gemma import save_saes

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parent
RELATIVE = 1e-6
ABSOLUTE = 1e-9
LINEAR_MAP = 1e-4
"""Relative, of what the linear map gives: from fewer tokens than dimensions it depends on the order of the sums."""
MEASURED = ("solver/", "solver_seconds", "tolerance")
"""Time, memory and counts of the solver, which depend on the machine."""
TEXT = [
    "dataset.documents=4", "dataset.windows_per_document=2", "dataset.window_tokens=64", "evaluation.min_count=4",
    "capture.first=12", "capture.last=15",
]  # fmt: skip
"""One little text for all jobs, which goes through the model once: the first job captures what any of them reads."""
SPLICED = [*TEXT, "evaluation.splice_documents=2"]
JOBS: dict[str, list[str]] = {
    "demo": ["layers.pair=13", *TEXT],
    "ablation": ["experiment=ablation", "layers.pair=13", *SPLICED],
    "controls": [
        "experiment=controls", "layers.pair=13", "judging=offline", "evaluation.quantiles=[0.25,0.5,1.0]", *SPLICED
    ],
    "composition": ["layers.first=12", "layers.last=15", "composition.max_distance=3", *SPLICED],
    "solvers": [
        "solver=certified,dense,greedy,nearest,mutual,cosine,soft", "evaluation=weights_only", "layers.pair=13"
    ],
    "gemma_scope": [
        "sae=gemma_scope_2b", "sae.l0=paper", "sae.d_model=32", "sae.n_layers=4", "evaluation=weights_only",
        "layers.first=0", "layers.last=3", "matching=both,decoder",
    ],
}  # fmt: skip


def run_job(name: str, directory: Path, cache: Path) -> dict[str, dict[str, Any]]:
    """Run the command and read every record: relative directory -> pairs, metrics, permutations."""
    command = list(JOBS[name])
    if name == "gemma_scope":
        save_saes(directory / "saes")
        command.append(f"sae.root={directory / 'saes'}")
    out = directory / "out"
    multirun = any("experiment=" in a or ("," in a and "[" not in a) for a in command)
    command += [f"hydra.sweep.dir={out}", "hydra.mode=MULTIRUN"] if multirun else [f"hydra.run.dir={out}"]
    done = run_command(*command, "tracking=none", cwd=directory, env={"SAE_MATCH_CACHE": str(cache)})
    assert done.code == 0, done.out + done.err
    records = sorted(path.parent for path in out.rglob("metrics.json"))
    assert records, done.out + done.err
    return {str(record.relative_to(out)): read_record(record) for record in records}


def read_record(record: Path) -> dict[str, Any]:
    """The part of a record that decides whether two jobs found the same."""
    pairs = pd.read_csv(record / "pairs.csv")
    pairs = pairs[~pairs["metric"].str.startswith(MEASURED)]
    rows = {
        f"{row.layer}->{row.layer_to} {row.metric}/{row.variant}": [
            None if pd.isna(number) else float(number) for number in (row.value, row.low, row.high, row.n)
        ]
        for row in pairs.itertuples(index=False)
    }
    metrics = json.loads((record / "metrics.json").read_text())
    permutations = {
        path.name: hashlib.sha256(Permutation.load(path).indices.numpy().astype("<i8").tobytes()).hexdigest()
        for path in sorted((record / "permutations").glob("*.safetensors"))
    }
    kept = {name: value for name, value in metrics.items() if not name.startswith(MEASURED)}
    return {"metrics": kept, "pairs": rows, "permutations": permutations}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all golden jobs, as in a sweep."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", JOBS)
def test_golden(name: str, tmp_path: Path, cache: Path) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    found = run_job(name, tmp_path, cache)
    assert found.keys() == golden.keys()
    for job, expected in golden.items():
        assert found[job]["permutations"] == expected["permutations"], job
        for table in ("pairs", "metrics"):
            assert found[job][table].keys() == expected[table].keys(), job
            for key, value in expected[table].items():
                ours = found[job][table][key]
                pairs = zip(ours, value, strict=True) if isinstance(value, list) else [(ours, value)]
                relative = LINEAR_MAP if "linear_map" in key else RELATIVE
                assert all(close(one, other, relative) for one, other in pairs), (job, key, ours, value)


def close(found: float | None, expected: float | None, relative: float) -> bool:
    """Whether two numbers, or two missing ones, are the same."""
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, rel_tol=relative, abs_tol=ABSOLUTE)


def write(names: list[str]) -> None:
    """Write the golden files of these jobs anew."""
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        for name in names or JOBS:
            directory = Path(temporary) / name
            directory.mkdir()
            found = run_job(name, directory, Path(temporary) / "cache")
            text = json.dumps(found, indent=0, sort_keys=True)
            (GOLDEN / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            print(name, {job: len(record["pairs"]) for job, record in found.items()}, flush=True)


if __name__ == "__main__":
    write(sys.argv[1:])
