"""Native and Gemma Scope files: round trips, layouts, and errors that name what is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_match import UserError, load_sae
from sae_match.saes import SaeSource, save_native
from sae_match.saes.formats.gemma_scope import GemmaScope, choose_l0
from sae_match.saes.formats.reading import read_metadata
from tests.builders import random_sae
from tests.saes.layouts import random_tensors


def gemma_config(root: Path | None, l0: str = "canonical") -> GemmaScope:
    return GemmaScope(
        name="gemma",
        root=None if root is None else str(root),
        repo_id="google/gemma-scope-2b-pt-res",
        width="16k",
        l0=l0,
        last_layer=25,
    )


def write_npz(root: Path, layer: int, l0: int, **changes: object) -> Path:
    folder = root / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}"
    folder.mkdir(parents=True)
    arrays = {name: t.numpy() for name, t in random_sae(seed=layer).parameters().items()}
    arrays |= changes  # type: ignore[arg-type]
    np.savez(folder / "params.npz", **{n: a for n, a in arrays.items() if a is not None})  # type: ignore[arg-type]
    return folder / "params.npz"


def test_native_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sae.safetensors"
    save_native(random_sae(), path, {"licence": "MIT"})
    assert load_sae(path).content_hash == random_sae().content_hash
    assert read_metadata(path)["licence"] == "MIT"
    assert [p.name for p in path.parent.iterdir()] == ["sae.safetensors"]


def test_native_bfloat16_reads_back_as_float32(tmp_path: Path) -> None:
    save_native(random_sae(), tmp_path / "sae.safetensors", dtype=torch.bfloat16)
    back = load_sae(tmp_path / "sae.safetensors")
    assert back.W_enc.dtype == torch.float32
    torch.testing.assert_close(back.W_dec, random_sae().W_dec, rtol=2**-8, atol=0)


def test_native_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        load_sae(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_sae(tmp_path / "broken.safetensors")
    save_file({"W_enc": torch.zeros(2, 2), "extra": torch.zeros(1)}, tmp_path / "keys.safetensors")
    with pytest.raises(UserError, match=r"missing \['W_dec', 'b_dec', 'b_enc', 'threshold'\], unknown \['extra'\]"):
        load_sae(tmp_path / "keys.safetensors")
    (tmp_path / "sae.dat").touch()
    with pytest.raises(UserError, match="unknown SAE file type"):
        load_sae(tmp_path / "sae.dat")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threshold", float("inf"), r"threshold holds NaN or infinity at feature 5"),
        ("b_enc", float("nan"), r"b_enc holds NaN or infinity at feature 5"),
    ],
)
def test_invalid_values_are_named(tmp_path: Path, name: str, value: float, message: str) -> None:
    array = random_sae(seed=4).parameters()[name].clone()
    array[5] = value
    write_npz(tmp_path, 4, 124, **{name: array.numpy()})
    with pytest.raises(UserError, match=message):
        SaeSource(gemma_config(tmp_path)).load(4)


def test_gemma_scope_layout(tmp_path: Path) -> None:
    write_npz(tmp_path, 3, 59)
    write_npz(tmp_path, 4, 124)
    write_npz(tmp_path, 4, 125)
    assert SaeSource(gemma_config(tmp_path)).load(4).content_hash == random_sae(seed=4).content_hash
    assert "average_l0_125" in SaeSource(gemma_config(tmp_path, "paper")).load(4).source
    assert "average_l0_124" in SaeSource(gemma_config(tmp_path, "124")).load(4).source
    with pytest.raises(UserError, match=r"no average_l0_7.*found average_l0_124, average_l0_125"):
        SaeSource(gemma_config(tmp_path, "7")).locate([4])
    with pytest.raises(UserError, match=r"no SAE for layer 9.*holds layer_3, layer_4"):
        SaeSource(gemma_config(tmp_path)).locate([3, 9])
    with pytest.raises(UserError, match=r"layers \[26\]: the SAEs gemma cover layers 0..25"):
        SaeSource(gemma_config(tmp_path)).locate([26])


def test_gemma_scope_only_choice_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_npz(tmp_path, 4, 12)
    assert "average_l0_12" in SaeSource(gemma_config(tmp_path)).load(4).source
    assert "average_l0_124 is not there; using the only one" in caplog.text


def test_gemma_scope_keys_in_any_case_and_scaling_factor(tmp_path: Path) -> None:
    arrays = {n.lower(): t.numpy() for n, t in random_sae(seed=1).parameters().items()}
    removed: dict[str, object] = dict.fromkeys(random_sae().parameters())
    write_npz(tmp_path, 1, 102, **{**removed, **arrays, "scaling_factor": np.ones(24, np.float32)})
    assert SaeSource(gemma_config(tmp_path)).load(1).content_hash == random_sae(seed=1).content_hash
    write_npz(tmp_path, 2, 141, scaling_factor=np.full(24, 2.0))
    with pytest.raises(UserError, match="scaling_factor is not all ones"):
        SaeSource(gemma_config(tmp_path)).load(2)


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_pickled_content_is_refused_and_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    objects = np.array([Bomb(trap)], dtype=object)
    write_npz(tmp_path, 4, 124, threshold=objects)
    with pytest.raises(UserError, match="Pickled files are refused"):
        SaeSource(gemma_config(tmp_path)).load(4)
    (tmp_path / "whole.npz").write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(UserError, match="Pickled files are refused"):
        load_sae(tmp_path / "whole.npz")
    assert not trap.exists()


def test_truncated_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path, 4, 124)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        load_sae(path)


def test_missing_key(tmp_path: Path) -> None:
    write_npz(tmp_path, 4, 124, threshold=None)
    with pytest.raises(UserError, match="missing keys threshold"):
        SaeSource(gemma_config(tmp_path)).load(4)


def test_hub_offline_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"offline mode is on.*sae\.root"):
        SaeSource(gemma_config(None)).locate([4])


def test_choose_l0() -> None:
    repo = "google/gemma-scope-2b-pt-res"
    assert choose_l0(repo, "16k", 0, "canonical") == 105
    assert choose_l0(repo, "16k", 13, "canonical") == 84
    assert choose_l0(repo, "16k", 13, "paper") == 83
    assert choose_l0(repo, "16k", 13, "7") == 7
    for arguments, message in [
        ((repo, "16k", 26, "paper"), "covers layers 0..25"),
        ((repo, "65k", 3, "paper"), "covers only"),
        ((repo, "3k", 3, "canonical"), "canonical L0s for widths"),
        (("me/mine", "16k", 3, "canonical"), "no canonical L0 list"),
        ((repo, "16k", 3, "best"), "must be canonical, paper"),
    ]:
        with pytest.raises(UserError, match=message):
            choose_l0(*arguments)


@pytest.mark.parametrize("name", ["layer3.sae.pt", "trainer_0/checkpoints/ae_1000.pt", "sae.bin", "model.pkl"])
def test_a_pickle_that_exists_is_not_called_missing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(random_tensors(), path)
    for given in (path, path.parent):
        with pytest.raises(UserError, match=rf"{path.name}: .*pickle.*from_state_dict.*save_native"):
            load_sae(given)
    with pytest.raises(UserError, match=r"not called ae\.pt"):
        load_sae(path, dialect="dictionary_learning")
    with pytest.raises(UserError, match="not found"):
        load_sae(path.with_name("absent.pt"))
