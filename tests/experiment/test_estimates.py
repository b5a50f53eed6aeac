"""Estimates against the things they estimate: tensors, files, counted operations; and how they grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sae_match.errors import UserError
from sae_match.evaluation.activations import ActivationRequest, compute_activations, to_arrays
from sae_match.evaluation.functional.contexts import FunctionalTests, choose_contexts
from sae_match.evaluation.functional.effects import FunctionalPair, deactivate, fingerprints
from sae_match.evaluation.splices import SpliceUnits
from sae_match.evaluation.standard_splices import STANDARD
from sae_match.language_model import LanguageModel, load_language_model
from sae_match.language_model.loading import ModelSize, model_size
from sae_match.language_model.residual_streams import Manifest, layer_bytes
from sae_match.language_model.sources import LocalModel
from sae_match.matching import Permutation
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.problem import Metric, matching_problem
from sae_match.matching.similarity import WeightDistance
from sae_match.plan import resources
from sae_match.plan.allocation import Allocation, advice, cgroups, current_allocation
from sae_match.plan.machine import available_ram, check_memory, probe_machine
from sae_match.plan.resources import FunctionalShape, JobShape, Phase, TextSize, phases
from sae_match.store import Store
from tests.builders import random_sae, splices_of_pair
from tests.tiny_setting import LAYERS

GEMMA = ModelSize(
    parameters=2_614_341_888, block_parameters=77_865_984, n_layers=26, d_model=2304, heads=8, d_ff=9216,
    vocabulary=256_000, itemsize=2, eager=True,
)  # fmt: skip
PAPER = JobShape(
    d_model=2304, widths=(16_384,) * 26, solver_bytes=5 * 2**30, model=GEMMA, splices=6,
    text=TextSize(100, 100, 100, tokens=1024, batch=2),
)  # fmt: skip


def test_sae_bytes_are_those_of_its_tensors() -> None:
    sae = random_sae(width=24, d=8)
    assert resources.sae_bytes(8, 24) == sum(t.numel() * t.element_size() for t in sae.parameters().values())


@pytest.mark.parametrize("metric", list(Metric))
def test_problem_width_is_that_of_the_problem(metric: Metric) -> None:
    problem = matching_problem(random_sae(seed=1), random_sae(seed=2), metric=metric)
    assert WeightDistance(metric=metric).numbers_per_feature(8) == problem.left.shape[1]


@pytest.mark.parametrize(("tokens", "far"), [(12, ()), (300, ((24, 40),))])
def test_pass_bytes_are_those_of_the_stored_arrays(tokens: int, far: tuple[tuple[int, int], ...]) -> None:
    a, b, documents = random_sae(width=24), random_sae(width=40, seed=1), 3
    known = {name: Permutation.random(24, 40, seed=i) for i, name in enumerate(("matched", "vanilla", "random"))}
    x, document = torch.randn(documents, tokens, 8), torch.arange(documents)
    splices = splices_of_pair(a, b, known, SpliceUnits.raw, quantiles=[0.5])
    statistics = compute_activations(ActivationRequest(a, b, x, x, document, known, splices))
    statistics.a.active[0, 0] = tokens  # as often as may be
    wide = {array.dtype for array in to_arrays(statistics).values()}
    stored = sum(array.nbytes for array in to_arrays(statistics).values())
    if far:
        others = {name: splices[name] for name in list(splices)[:5]}
        more = compute_activations(ActivationRequest(a, b, x, x, document, known, others))
        stored += sum(array.nbytes for array in to_arrays(more).values())
    shape = JobShape(
        d_model=8, widths=(24, 40), solver_bytes=0, splices=len(splices), far_pairs=far,
        text=TextSize(documents, documents, documents, tokens=tokens, batch=1),
    )  # fmt: skip
    assert len(wide) >= 2
    found = resources.passes_bytes(shape)
    assert found is not None and stored <= found <= 2 * stored
    assert resources.passes_bytes(replace(shape, text=TextSize(None, None, None, tokens=tokens, batch=1))) is None


def test_stream_bytes_are_those_of_the_file() -> None:
    manifest = Manifest("k", "m", "name", "w", n_windows=7, window_tokens=5, d_model=3)
    assert layer_bytes(7, 5, 3) == manifest.layer_bytes == torch.zeros(7, 5, 3).numel() * 4


@pytest.fixture
def model(model_directory: Path, tmp_path: Path) -> tuple[LanguageModel, ModelSize]:
    cfg = LocalModel(name="tiny", path=str(model_directory), attn_implementation="eager")
    return load_language_model(cfg, "cpu", Store(tmp_path)), model_size(cfg, model_directory)


def test_model_size_is_that_of_the_loaded_model(model: tuple[LanguageModel, ModelSize]) -> None:
    loaded, size = model
    assert size.parameters == sum(p.numel() for p in loaded.hf.parameters())
    assert size.bytes == sum(p.numel() * p.element_size() for p in loaded.hf.parameters())
    assert size.block_parameters == sum(p.numel() for p in loaded.blocks[1].parameters())
    assert (size.n_layers, size.d_model, size.d_ff, size.heads) == (LAYERS, 8, 16, 2)


def test_gemma_is_counted_without_its_weights(tmp_path: Path) -> None:
    import transformers

    transformers.Gemma2Config().save_pretrained(tmp_path)
    cfg = LocalModel(name="g", path=str(tmp_path), dtype="bfloat16", attn_implementation="eager")
    assert model_size(cfg, tmp_path) == GEMMA


def test_operations_of_a_capture_are_those_counted(model: tuple[LanguageModel, ModelSize]) -> None:
    loaded, size = model
    ids = torch.ones(3, 12, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loaded.resid_post(ids, [2])
    # The model's norms multiply no matrices, but their weights are counted.
    assert resources.capture_flops(size, 3, 12, last=2) == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_operations_of_splicing_are_those_counted(model: tuple[LanguageModel, ModelSize]) -> None:
    loaded, size = model
    ids = torch.ones(3, 12, dtype=torch.long)
    shape = JobShape(8, (24,) * LAYERS, 0, model=size, splices=6)
    a, b = random_sae(seed=1), random_sae(seed=2)
    splices = sum(splice.count(resources.VARIANTS) for splice in STANDARD)
    loaded.token_losses_from(0, torch.randn(3, 12, 8), ids)  # finds out what blocks return
    with FlopCounterMode(display=False) as counter:
        for layer in range(1, LAYERS):
            x = torch.randn(3, 12, 8)
            f_a, _ = a.encode(x), b.encode(x)
            for _ in range(splices):
                loaded.token_losses_from(layer, b.decode(Permutation.identity(24).apply(f_a)), ids)
        loaded.token_losses_from(LAYERS - 1, x, ids)
    found = resources.splice_flops(size, shape, 3, 12, list(range(LAYERS)))
    assert found == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_operations_of_functional_tests_are_those_counted(model: tuple[LanguageModel, ModelSize]) -> None:
    loaded, size = model
    a, b = random_sae(seed=1), random_sae(seed=2)
    ids = torch.randint(1, 20, (3, 12), generator=torch.Generator().manual_seed(0))
    streams = loaded.resid_post(ids, [0, 1])
    loaded.token_losses_from(0, streams[0], ids)  # finds out what blocks return
    pair = FunctionalPair(loaded, a, b, (0, 1), streams[0], streams[1], ids, context_tokens=12)
    contexts = choose_contexts(a, streams[0], FunctionalTests(features=0, contexts=3, context_tokens=12))
    features = [i for i, windows in enumerate(contexts.windows) if len(windows) == 3]
    with FlopCounterMode(display=False) as counter:
        for i in features:
            deactivate(pair, int(contexts.features[i]), contexts.windows[i])
        fingerprints(pair, contexts.features[features])
    shape = JobShape(
        8, (24,) * LAYERS, 0, model=size, tested=FunctionalShape(((0, 1, 24, 24),), len(features), 3, 12, 0.0, True)
    )
    found = resources.functional_flops(size, shape, TextSize(3, 3, 3, 12, 8), 3)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.25)
    assert resources.functional_flops(size, replace(shape, tested=None), TextSize(3, 3, 3, 12, 8), 3) == 0


@given(layers=st.integers(2, 60), on_gpu=st.booleans())
def test_no_step_needs_more_for_more_layers(layers: int, on_gpu: bool) -> None:
    few, many = (
        phases(replace(PAPER, widths=(16_384,) * 2), on_gpu),
        phases(replace(PAPER, widths=(16_384,) * layers), on_gpu),
    )
    assert few == many


def test_the_papers_run_fits() -> None:
    base = 0.7 * 2**30
    assert max(step.ram_bytes for step in phases(PAPER, on_gpu=False)) + base < 16 * 2**30
    assert max(step.gpu_bytes for step in phases(PAPER, on_gpu=True)) < 24 * 2**30
    assert max(step.ram_bytes for step in phases(PAPER, on_gpu=True)) + base < 16 * 2**30


def test_what_is_where() -> None:
    (loading,) = (step for step in phases(PAPER, on_gpu=True) if step.name == "load the model")
    assert loading.ram_bytes == loading.gpu_bytes == GEMMA.bytes
    assert all(not step.gpu for step in phases(PAPER, on_gpu=False))
    spread = phases(PAPER, on_gpu=True, spread=True)
    assert not any("model" in step.gpu or "model" in step.ram for step in spread)
    weights_only = phases(replace(PAPER, model=None), on_gpu=False)
    assert [step.name for step in weights_only] == ["check SAEs", "match a pair", "compare weights"]
    *_, flow = phases(replace(PAPER, model=None, flow=True), on_gpu=False)
    assert flow.name == "find the flow graph" and flow.ram["similarities"] == 10 * 4096 * 16_384
    subset = phases(replace(PAPER, text=TextSize(100, 10, 100, tokens=1024, batch=2)), on_gpu=False)[-1]
    assert subset.ram["chosen windows"] == 2 * 10 * 1024 * 2304 * 4


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=50_000))
    write: Callable[[str, str], int] = lambda name, text: (tmp_path / name).write_text(text)  # noqa: E731
    assert available_ram(tmp_path) == 50_000
    write("memory.max", "max\n")
    write("memory.current", "10000\n")
    assert available_ram(tmp_path) == 50_000
    write("memory.max", "30000\n")
    assert available_ram(tmp_path) == 20_000
    write("memory.stat", "anon 6000\nactive_file 1000\ninactive_file 3000\n")
    assert available_ram(tmp_path) == 24_000, "file pages give way"
    own = tmp_path / "system" / "job_7"  # as Slurm makes one for a job
    own.mkdir(parents=True)
    (tmp_path / "self").write_text("1:name=x:/y\n0::/system/job_7\n")
    assert list(cgroups(tmp_path, tmp_path / "self")) == [tmp_path, own.parent, own]
    monkeypatch.setattr("sae_match.plan.machine.cgroups", lambda root: cgroups(root, tmp_path / "self"))
    write("system/job_7/memory.max", "8000\n")
    write("system/job_7/memory.current", "1000\n")
    assert available_ram(tmp_path) == 7_000


def test_slurms_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JOB_ID", "MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE", "CPUS_PER_TASK"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    assert current_allocation() is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert current_allocation() == Allocation()
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1000")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert current_allocation() == Allocation(ram=4000 * 2**20, cpus=4)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1024")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert current_allocation() == Allocation(ram=2**30, cpus=2)


def test_memory_that_slurm_is_asked_for_is_checked_on_any_machine() -> None:
    device, small = torch.device("cpu"), Allocation(ram=2**33, asked=True)
    machine = probe_machine(device, small)
    assert machine.ram_free == 2**33 - machine.ram_used
    with pytest.raises(UserError, match=r"needs 8\.0 GiB of main memory .* Set hydra\.launcher\.mem_gb=1[0-3],"):
        check_memory([Phase("match a pair", {"solver": 2**33})], machine, None, small)
    steps = [Phase("match a pair", {"solver": 2**31})]
    large = Allocation(ram=2**50, gpus=1, minutes=10, asked=True)
    check_memory(steps, probe_machine(device, large), None, large)
    lines = list(advice(large, steps, 2**30, 900.0, complete=True))
    assert "the job needs 3.0 GiB: 4 would do" in lines[0]
    assert "10; what can be counted takes about 15 min: the job would be started again" in lines[2]
    assert "more than 3.0 GiB" in next(advice(large, steps, 2**30, None, complete=False))


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 1, "cuda"), ("auto", 0, "cpu"), ("cpu", 1, "cpu"), ("cuda", 1, "cuda"), ("cuda:0", None, None)],
)
def test_the_device_of_a_job_that_is_planned_elsewhere(device: str, gpus: int | None, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UserError, match="gpus_per_node=0"):
            Allocation(gpus=gpus, asked=True).device(device)
    else:
        assert Allocation(gpus=gpus, asked=True).device(device).type == expected


def test_the_least_that_a_solver_can_do_with() -> None:
    certified = CertifiedSolver()
    # A small cache costs less than the longer lists that go without one; a large one is what one can do without.
    assert certified.required_bytes(100, 100, 17) == certified.bytes_with(100, 100, 17, cached=True)
    assert certified.required_bytes(9000, 9000, 17) == certified.bytes_with(9000, 9000, 17, cached=False)
    assert certified.required_bytes(9000, 9000, 17) < certified.bytes_with(9000, 9000, 17, cached=True)
