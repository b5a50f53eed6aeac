"""Capturing residual streams: right values, one pass, resumable, shared, damage noticed."""

from __future__ import annotations

import copy
import json
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sae_match.errors import UserError
from sae_match.language_model import LanguageModel, ResidualStreams, capture, residual_streams
from sae_match.store import Store


def hooked(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """Every block's output in one ordinary forward pass."""
    outputs: list[Tensor] = []

    def keep(_block: nn.Module, _args: object, output: object) -> None:
        outputs.append(output[0] if isinstance(output, (tuple, list)) else output)

    handles = [block.register_forward_hook(keep) for block in model.blocks]
    with torch.no_grad():
        model.hf(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of windows in every forward pass that captures."""
    seen: list[int] = []
    real = LanguageModel.stream_resid_post

    def stream_resid_post(self: LanguageModel, ids: Tensor, *rest: Any) -> None:
        seen.append(len(ids))
        real(self, ids, *rest)

    monkeypatch.setattr(LanguageModel, "stream_resid_post", stream_resid_post)
    return seen


def fail_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets n batches through and stops the next one, as a kill would."""
    real, calls = LanguageModel.stream_resid_post, []

    def stream_resid_post(self: LanguageModel, ids: Tensor, *rest: Any) -> None:
        calls.append(1)
        if len(calls) > n:
            raise KeyboardInterrupt
        real(self, ids, *rest)

    monkeypatch.setattr(LanguageModel, "stream_resid_post", stream_resid_post)


def test_streams_equal_direct_hooks(model: LanguageModel, windows: SimpleNamespace, tmp_path: Path) -> None:
    streams = capture(model, windows, [2, 0], Store(tmp_path), batch_windows=3)
    direct = hooked(model, windows.ids)
    assert (streams.layers, streams.n_windows, streams.window_tokens, streams.d_model) == ([0, 2], 7, 6, 16)
    for layer in streams.layers:
        assert streams.layer(layer).dtype == torch.float32
        torch.testing.assert_close(streams.layer(layer), direct[layer], rtol=1e-5, atol=1e-5)


def test_nothing_after_the_last_layer_is_computed(model: LanguageModel, ids: Tensor) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("computed for nothing")

    handles = [
        module.register_forward_pre_hook(fail) for module in (*model.blocks[2:], model.hf.get_output_embeddings())
    ]
    assert set(model.resid_post(ids, [1])) == {1}
    for handle in handles:
        handle.remove()


def test_no_layers_stream_outlives_its_turn(llama: LanguageModel, ids: Tensor) -> None:
    """Memory must not grow with the number of layers captured in one pass."""
    handed: list[tuple[int, weakref.ref[Tensor]]] = []
    alive: list[int] = []

    def consume(layer: int, residual: Tensor) -> None:
        handed.append((layer, weakref.ref(residual)))
        alive.append(sum(reference() is not None for _, reference in handed))

    llama.stream_resid_post(ids, range(llama.n_layers), consume)
    assert [layer for layer, _ in handed] == list(range(llama.n_layers))
    assert max(alive) <= 2, "a block's output lives on as the next block's input, and no longer"


def test_files_are_plain_safetensors(llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path) -> None:
    streams = capture(llama, windows, [1], Store(tmp_path))
    directory = streams.directory
    assert directory.name == streams.key
    with safe_open(directory / "layer_01.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("resid_post"), streams.layer(1))
        assert file.metadata()["key"] == streams.key and file.metadata()["layer"] == "1"
    mark = json.loads((directory / "entry.json").read_text())
    assert mark["key"]["model"] == llama.key and mark["key"]["windows"] == windows.key
    assert list(mark["files"]) == ["layer_01.safetensors"]
    assert {path.suffix for path in directory.iterdir()} == {".safetensors", ".json", ".lock"}


def test_half_precision_is_stored_as_float32(
    make_model: Callable[..., LanguageModel], windows: SimpleNamespace, tmp_path: Path
) -> None:
    model = make_model("llama", dtype=torch.bfloat16)
    stream = capture(model, windows, [1], Store(tmp_path)).layer(1)
    assert stream.dtype == torch.float32 and torch.equal(stream, hooked(model, windows.ids)[1].float())


def test_finished_layers_are_reused_and_missing_ones_added(
    llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path, passes: list[int]
) -> None:
    first = capture(llama, windows, [0, 1], Store(tmp_path), batch_windows=4)
    assert passes == [4, 3]
    written = (first.directory / "layer_01.safetensors").stat().st_mtime_ns
    assert capture(llama, windows, [1], Store(tmp_path)).layers == [0, 1]
    assert passes == [4, 3]
    more = capture(llama, windows, [1, 2], Store(tmp_path))
    assert passes == [4, 3, 7] and more.layers == [0, 1, 2] and more.directory == first.directory
    assert (first.directory / "layer_01.safetensors").stat().st_mtime_ns == written


def test_interrupted_capture_goes_on(
    llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = capture(llama, windows, [0, 2], Store(tmp_path / "whole"), batch_windows=2)
    passes.clear()
    monkeypatch.setattr(residual_streams, "_CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_after(2, patch)
        capture(llama, windows, [0, 2], Store(tmp_path), batch_windows=2)
    assert ResidualStreams(Store(tmp_path).root / "residual_streams" / whole.key).layers == []
    passes.clear()
    resumed = capture(llama, windows, [0, 2], Store(tmp_path), batch_windows=2)
    assert passes == [2, 1], "the four windows done before the interruption are not computed again"
    for layer in (0, 2):
        assert torch.equal(resumed.layer(layer), whole.layer(layer))
    assert sorted(path.name for path in resumed.directory.glob("*.partial")) == []
    assert not (resumed.directory / "progress.json").exists()


def test_what_was_written_after_the_last_checkpoint_is_overwritten(
    llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = capture(llama, windows, [1], Store(tmp_path / "whole"))
    monkeypatch.setattr(residual_streams, "_CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_after(2, patch)
        capture(llama, windows, [1], Store(tmp_path), batch_windows=2)
    partial = Store(tmp_path).root / "residual_streams" / whole.key / "layer_01.safetensors.partial"
    with partial.open("ab") as file:
        file.write(b"\x7f" * 100)  # half a window, then the kill
    resumed = capture(llama, windows, [1], Store(tmp_path), batch_windows=2)
    assert torch.equal(resumed.layer(1), whole.layer(1))


def test_interrupted_capture_goes_on_with_other_layers(
    llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = capture(llama, windows, [0, 1, 2], Store(tmp_path / "whole"), batch_windows=2)
    monkeypatch.setattr(residual_streams, "_CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_after(2, patch)
        capture(llama, windows, [0, 1], Store(tmp_path), batch_windows=2)
    for layers in ([1, 2], [0]):
        streams = capture(llama, windows, layers, Store(tmp_path), batch_windows=2)
        for layer in layers:
            assert torch.equal(streams.layer(layer), whole.layer(layer))
    assert streams.layers == [0, 1, 2]


def test_two_jobs_share_one_capture(
    llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path, passes: list[int]
) -> None:
    results: list[Tensor] = []

    def job(model: LanguageModel) -> None:
        results.append(capture(model, windows, [0, 1], Store(tmp_path), batch_windows=1).layer(1).clone())

    threads = [threading.Thread(target=job, args=(copy.deepcopy(llama),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and torch.equal(results[0], results[1])
    assert sum(passes) == 7, "the second job waits and reuses"


def test_readers_cannot_change_the_file(llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path) -> None:
    streams = capture(llama, windows, [0], Store(tmp_path))
    before = streams.layer(0).clone()
    streams.layer(0).zero_()
    assert torch.equal(streams.layer(0), before)


def test_key_follows_weights_windows_and_attention(
    make_model: Callable[..., LanguageModel], windows: SimpleNamespace, tmp_path: Path
) -> None:
    base = capture(make_model("llama"), windows, [0], Store(tmp_path)).key
    assert capture(make_model("llama"), windows, [0], Store(tmp_path)).key == base
    other_windows = SimpleNamespace(ids=windows.ids, key="others")
    renamed, nudged, eager, half = (make_model("llama") for _ in range(4))
    renamed.name = "another name"
    nudged.blocks[2].mlp.down_proj.weight[0, 0] += 1e-3
    eager.hf.set_attn_implementation("eager")
    half.hf.to(torch.bfloat16)
    assert renamed.key == make_model("llama").key
    keys = [capture(make_model("llama"), other_windows, [0], Store(tmp_path)).key]
    keys += [
        capture(model, windows, [0], Store(tmp_path)).key
        for model in (nudged, eager, half, make_model("llama", seed=1))
    ]
    assert len({base, *keys}) == 6


def test_damaged_files_are_refused(llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path) -> None:
    streams = capture(llama, windows, [0, 1], Store(tmp_path))
    path = streams.directory / "layer_00.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-4], content + b"1234", b"\x00" + content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"layer_00\.safetensors: damaged"):
            streams.layer(0)
    with pytest.raises(UserError, match="layer 2 is not captured"):
        streams.layer(2)
    (streams.directory / "entry.json").write_text("{}")
    with pytest.raises(UserError, match="holds no residual streams"):
        ResidualStreams(streams.directory)


def test_mistakes_come_before_the_work(
    llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="blocks 0 to 2"):
        capture(llama, windows, [1, 3], Store(tmp_path))
    with pytest.raises(UserError, match="no token windows"):
        capture(llama, SimpleNamespace(ids=windows.ids[:0], key="none"), [1], Store(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"need .* KiB, 1000 B are free"):
        capture(llama, windows, [1], Store(tmp_path))
    assert passes == []


def overflowing(model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """A copy whose residual stream exceeds float16's range from block 1 on."""
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(1e9)
    return LanguageModel(hf.to(dtype), None, "big")


def test_a_residual_stream_that_overflows_is_an_error(
    llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"big: .* after block 1 .* in float16\. .*model\.dtype=float32 or bfloat16"):
        capture(overflowing(llama, torch.float16), windows, [0, 1, 2], Store(tmp_path))
    assert not list(tmp_path.rglob("layer_*.safetensors"))
    with pytest.raises(UserError, match="before the LM head holds NaN or infinity in float16"):
        overflowing(llama, torch.float16).token_losses(windows.ids)
    for dtype in (torch.float32, torch.bfloat16):
        fine = capture(overflowing(llama, dtype), windows, [1], Store(tmp_path))
        assert float(fine.layer(1).abs().max()) > 65504
    damaged = overflowing(llama, torch.float32)
    damaged.hf.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"after block 0 .* in float32\. Is the checkpoint damaged"):
        damaged.resid_post(windows.ids, [0])


def test_a_token_without_an_embedding_is_named(llama: LanguageModel, windows: SimpleNamespace, tmp_path: Path) -> None:
    n = llama.hf.get_input_embeddings().weight.shape[0]
    beyond = SimpleNamespace(ids=torch.full_like(windows.ids, n), key="beyond")
    with pytest.raises(UserError, match=rf"token id {n}, but the model has {n} embeddings"):
        capture(llama, beyond, [0], Store(tmp_path))
    llama.check_ids(windows.ids)
