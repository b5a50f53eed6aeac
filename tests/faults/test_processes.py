"""Eight processes that start the same job on the same empty cache at once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_match.experiment import run
from sae_match.study import Study
from tests.faults.kill_loop import results

pytestmark = pytest.mark.slow

PROCESSES = 8


def test_eight_processes_on_one_key(configured: Callable[..., Study], random_saes: Path, tmp_path: Path) -> None:
    children = []
    for i in range(PROCESSES):
        cfg = configured(random_saes, "evaluation=weights_only", "layers.last=2", output=f"out_{i}")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(cfg)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * PROCESSES
    found = [results(tmp_path / f"out_{i}") for i in range(PROCESSES)]
    assert all(other == found[0] for other in found)
    left = [path.name for path in tmp_path.rglob("*") if ".tmp" in path.name or path.suffix == ".lock"]
    assert left == []
