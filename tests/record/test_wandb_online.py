"""An online run against a server on loopback: two attempts at one job."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_match.matching import Permutation
from tests.record.wandb_server import run_python, wandb_server

pytestmark = pytest.mark.slow
"""Two processes that wait for W&B's own."""

ONLINE = """
import sys
from pathlib import Path
from sae_match.tracking.wandb_mirror import WandbMirror
job, layers, fails = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "fails"
with WandbMirror(job, mode="online", config={"folding": {"name": "theta"}, "sae": {"name": "native"}},
                 cache_dir=job.parent / "cache", run_id="0123456789abcdef", group="sweep") as mirror:
    mirror.log_curves("layer", [{"layer": n, "score": n + layers / 10} for n in range(layers)])
    if fails:
        raise SystemExit(143)
    mirror.summary({"score": 1.0})
    mirror.log_permutations(job / "permutations")
"""


def test_an_online_run_is_continued_by_the_next_attempt(tmp_path: Path) -> None:
    job = tmp_path / "job"
    provenance = {"layer_a": 0, "layer_b": 1, "sae_a": "aa00", "sae_b": "bb01"}
    Permutation(torch.arange(3), 3, provenance).save(job / "permutations" / "layer_00_to_01.safetensors")
    with wandb_server() as server:
        broken = run_python(server, tmp_path, "-c", ONLINE, str(job), "2", "fails")
        assert broken.returncode == 143, broken.stderr
        (uploaded,) = server.runs.values()
        assert uploaded.exit_code == 143 and len(uploaded.history) == 2
        done = run_python(server, tmp_path, "-c", ONLINE, str(job), "3", "succeeds")
        assert done.returncode == 0, done.stderr
    (uploaded,) = server.runs.values()
    assert uploaded.exit_code == 0 and uploaded.summary["score"] == 1.0
    # What the first attempt had logged is replaced, not joined by a second point per layer.
    assert [row["per_layer/score"] for row in uploaded.history] == [0.3, 1.3, 2.3]
    # An online client also asks about organisations and artifact types, and does without an answer; nothing that it
    # wanted to write went unanswered.
    assert not any("mutation" in asked or "file_stream" in asked for asked in server.unknown)
