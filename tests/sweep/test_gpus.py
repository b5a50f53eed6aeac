"""Processes side by side see different GPUs."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sae_match.sweep.launch import take_gpu

FORK = multiprocessing.get_context("fork")


def taken(count: int, device: str = "auto") -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is in each of so many processes that live at the same time."""
    end, answers = FORK.Barrier(count), FORK.SimpleQueue()

    def take(end: Any, answers: Any) -> None:
        take_gpu(device)
        take_gpu(device)  # the process's next job
        answers.put(os.environ.get("CUDA_VISIBLE_DEVICES"))
        end.wait()

    started = [FORK.Process(target=take, args=(end, answers)) for _ in range(count)]
    for process in started:
        process.start()
    found = [answers.get() for _ in started]
    for process in started:
        process.join()
    return found


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_each_process_has_a_gpu_of_its_own_as_long_as_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(map(str, taken(3))) == ["0", "1", "2"]
    assert sorted(map(str, taken(2, "cuda"))) == ["0", "1"]  # those of the first three are free again
    assert Counter(taken(7)).most_common()[0][1] == 3 and set(Counter(taken(6)).values()) == {2}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a1")  # as Slurm sets it
    assert sorted(map(str, taken(2))) == ["4", "GPU-a1"]


def test_where_there_is_nothing_to_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(2, "cpu") == [None] * 2 == taken(2, "cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert taken(2) == ["2"] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert taken(2) == [""] * 2
