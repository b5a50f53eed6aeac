"""One step of the benchmark in a process of its own: make a problem, or measure one method on it.

Started by the runner as `python -m tests.benchmarks.worker TASK.json`. A method is first run on small problems, so
that libraries are loaded and kernels compiled before anything is measured; then memory's high-water mark is reset
with the problem in memory, so that what is reported is what the method needs on top of its inputs.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from sae_match.errors import UserError
from sae_match.files import write_json
from sae_match.matching.problem import MatchingProblem
from tests.benchmarks.methods import Answer, Method, NoAnswerError, Options, methods
from tests.benchmarks.problems import Instance, Kind, Spec, build, demo_specs

WARM_UP = Spec(Kind.mix, 320, 12)
HARD_WARM_UP = demo_specs(["14-15"], ["encoder/none"])[0]
HARD_WIDTH = 256
"""Features of the warm-up's hard problem."""
UNLIMITED_S = 1e6
"""Time limit of the warm-up: compiling may take longer than what is measured may."""
ENOUGH_S = 20.0
"""No further repeat is begun after this many seconds, or after a quarter of the time limit."""


def prepare(task: dict[str, Any]) -> dict[str, Any]:
    """Make a problem and write its arrays to the task's folder."""
    folder = Path(task["folder"])
    instance = build(Spec.from_json(task["problem"]))
    np.save(folder / "left.npy", instance.left.numpy())
    np.save(folder / "right.npy", instance.right.numpy())
    if instance.planted is not None:
        np.save(folder / "planted.npy", instance.planted.numpy())
    return {"columns": instance.left.shape[1]}


def load(folder: Path) -> Instance:
    """The problem in that folder, in memory."""
    left, right = (torch.from_numpy(np.load(folder / f"{side}.npy", allow_pickle=False)) for side in ("left", "right"))
    file = folder / "planted.npy"
    planted = torch.from_numpy(np.load(file, allow_pickle=False)) if file.is_file() else None
    return Instance(left, right, planted)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Run one method as often as is asked and affordable; returns times, memory and what was found."""
    method = methods()[task["method"]]
    if method.requires and importlib.util.find_spec(method.requires) is None:
        return {"status": "missing", "message": f"module {method.requires} is not installed"}
    options = Options(**task["options"])
    torch.set_num_threads(options.threads)
    for problem in warm_ups(method):
        with suppress(NoAnswerError):
            method.solve(problem, replace(options, time_limit_s=UNLIMITED_S))
    instance = load(Path(task["folder"]))
    inputs = reset_peak()
    (Path(task["folder"]) / "started").touch()
    began, answers, peak = time.perf_counter(), [], 0
    busy = others_cpu_seconds()
    try:
        for _ in range(task["repeats"]):
            answers.append(method.solve(instance.problem, options))
            peak = peak or peak_bytes() - inputs
            if time.perf_counter() - began > min(ENOUGH_S, options.time_limit_s / 4):
                break
    except NoAnswerError as reason:
        return {"status": "no answer", "message": str(reason), "seconds": [time.perf_counter() - began]}
    took = time.perf_counter() - began
    # The kernel counts CPU time in ticks of 10 ms: nothing can be said about less than a few dozen.
    disturbance = max(0.0, others_cpu_seconds() - busy) / took if took > 0.5 else None
    memory = {"peak_bytes": peak, "inputs_bytes": inputs, "gpu_peak_bytes": gpu_peak_bytes(options.device)}
    return {"status": "ok", **times(answers), **memory, "cores_used_by_others": disturbance,
            **quality(instance, answers[0], method)}  # fmt: skip


def warm_ups(method: Method) -> list[MatchingProblem]:
    """An ordinary small problem; for solvers of ours also a part of the hardest demo problem, where prices alone do
    not lead to the optimum: the kernels of the augmenting paths take seconds to compile."""
    problems = [build(WARM_UP).problem]
    if method.stops_itself:
        hard = build(HARD_WARM_UP)
        problems.append(MatchingProblem(hard.left[:HARD_WIDTH].clone(), hard.right[:HARD_WIDTH].clone()))
    return problems


def times(answers: list[Answer]) -> dict[str, Any]:
    """Wall seconds of every repeat."""
    return {
        "seconds": [answer.seconds for answer in answers],
        "own_product": [answer.own_product for answer in answers],
        "setup": [answer.setup for answer in answers],
        "statistics": answers[-1].statistics,
    }


def quality(instance: Instance, answer: Answer, method: Method) -> dict[str, Any]:
    """Objective, pairs and the share of planted features that were found."""
    if answer.partner is None:
        return {}
    partner = torch.from_numpy(np.asarray(answer.partner, np.int64))
    matched = (partner >= 0).nonzero().flatten()
    found: dict[str, Any] = {
        "objective": objective(instance.problem, partner),
        "pairs": len(matched),
        "distinct": len(partner[matched].unique()),
        "lower_bound": answer.lower_bound,
    }
    if instance.planted is not None:
        persisting = instance.planted >= 0
        hits = int((partner == instance.planted)[persisting].sum())
        found["recovered"] = hits / int(persisting.sum()) if persisting.any() else None
    return found


def objective(problem: MatchingProblem, partner: torch.Tensor) -> float:
    """Sum of squared distances of the pairs in float64; pairs may share a feature of B."""
    total = 0.0
    for rows in (partner >= 0).nonzero().flatten().split(1024):
        left, right = problem.left[rows].to(torch.float64), problem.right[partner[rows]].to(torch.float64)
        total += float((left - right).square().sum())
    return total


def reset_peak() -> int:
    """Set the high-water mark of resident memory to what is resident now, and return that, in bytes.

    Raises:
        UserError: not Linux, which is where the kernel keeps a mark that can be reset.
    """
    try:
        # What the warm-up freed goes back to the system first, or the method would seem to need that much less.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError) as error:
        raise UserError(f"peak memory can be measured on Linux only ({error})") from error
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """High-water mark of resident memory since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def gpu_peak_bytes(device: str) -> int:
    """Peak of the GPU memory that was allocated, problem included; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0


def others_cpu_seconds() -> float:
    """CPU seconds that the machine spent on anything but this process."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return machine.user + machine.nice + machine.system - own.user - own.system


def main() -> None:
    """Do the task and write its result."""
    task = json.loads(Path(sys.argv[1]).read_text())
    result = (prepare if task["action"] == "prepare" else measure)(task)
    write_json(Path(task["result"]), result)


if __name__ == "__main__":
    main()
