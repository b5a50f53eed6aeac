"""Damaged, hostile and mistaken files: each is a UserError that names the file, nothing else."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sae_match import SparseAutoencoder, UserError, load_sae
from sae_match.saes import StateDict
from tests.saes.layouts import (
    D,
    F,
    dictionary_state,
    random_tensors,
    write_dictionary,
    write_gemma_scope,
    write_gemma_scope_2,
    write_llama_scope,
    write_saelens,
    write_sparsify,
)

STANDARD = {"architecture": "jumprelu", "metadata": {"hook_name": "blocks.3.hook_resid_post"}}


def gemma_scope_2(root: Path) -> tuple[Path, Path]:
    path = write_gemma_scope_2(root)
    return path, path


def llama_scope(root: Path) -> tuple[Path, Path]:
    folder = write_llama_scope(root)
    return folder, folder / "checkpoints" / "final.safetensors"


def saelens(root: Path) -> tuple[Path, Path]:
    folder = write_saelens(root / "s", STANDARD)
    return folder, folder / "sae_weights.safetensors"


def sparsify(root: Path) -> tuple[Path, Path]:
    folder = write_sparsify(root)
    return folder, folder / "sae.safetensors"


SAFETENSORS = {"gemma_scope_2": gemma_scope_2, "llama_scope": llama_scope, "saelens": saelens, "sparsify": sparsify}
"""What is loaded and the weights in it, by dialect."""


Writer = Callable[[Path], tuple[Path, Path]]


each_dialect = pytest.mark.parametrize(("dialect", "write"), SAFETENSORS.items(), ids=SAFETENSORS)


def encoder_key(tensors: dict[str, Any]) -> str:
    return next(name for name in tensors if name.lower() in ("w_enc", "encoder.weight"))


@each_dialect
def test_every_missing_key_is_named(tmp_path: Path, dialect: str, write: Writer) -> None:
    path, weights = write(tmp_path)
    tensors = load_file(weights)
    for name in tensors:
        save_file({n: t for n, t in tensors.items() if n != name}, weights)
        with pytest.raises(UserError, match=f"missing keys {name}"):
            load_sae(path, dialect=dialect)


@each_dialect
def test_every_wrong_shape_is_refused(tmp_path: Path, dialect: str, write: Writer) -> None:
    path, weights = write(tmp_path)
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        for wrong in (tensor[:-1].contiguous(), tensor.t().contiguous(), tensor[None]):
            if wrong.shape != tensor.shape:
                save_file(tensors | {name: wrong}, weights)
                with pytest.raises(UserError, match=r"shape|matrix"):
                    load_sae(path, dialect=dialect)


@pytest.mark.parametrize("dialect", ["llama_scope", "saelens", "sparsify"])
def test_both_matrices_transposed_disagree_with_the_config(tmp_path: Path, dialect: str) -> None:
    path, weights = SAFETENSORS[dialect](tmp_path)
    save_file({name: t.t().contiguous() for name, t in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="seems to be transposed"):
        load_sae(path)


@each_dialect
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_is_named(tmp_path: Path, dialect: str, write: Writer, bad: float) -> None:
    path, weights = write(tmp_path)
    tensors = load_file(weights)
    tensors[encoder_key(tensors)][2, 5] = bad
    save_file(tensors, weights)
    with pytest.raises(UserError, match="W_enc holds NaN or infinity at feature"):
        load_sae(path)


@each_dialect
def test_whole_numbers_are_not_weights(tmp_path: Path, dialect: str, write: Writer) -> None:
    path, weights = write(tmp_path)
    tensors = load_file(weights)
    key = encoder_key(tensors)
    save_file(tensors | {key: tensors[key].to(torch.int32)}, weights)
    with pytest.raises(UserError, match=f"{key} must be a floating-point tensor"):
        load_sae(path)


@each_dialect
def test_truncated_and_absurd_safetensors(tmp_path: Path, dialect: str, write: Writer) -> None:
    path, weights = write(tmp_path)
    whole = weights.read_bytes()
    shapes = {n: list(t.shape) for n, t in load_file(weights).items()}
    key = encoder_key(shapes)
    end = 4 * shapes[key][0] * shapes[key][1]
    header = json.dumps({key: {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, end]}}).encode()
    for content in (b"", whole[:5], whole[:-7], whole + b"0", len(header).to_bytes(8, "little") + header + bytes(end)):
        weights.write_bytes(content)
        with pytest.raises(UserError, match="not a readable safetensors"):
            load_sae(path, dialect=dialect)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_llama_scope, "hyperparams.json"),
        (lambda root: write_saelens(root / "s", STANDARD), "cfg.json"),
        (write_sparsify, "cfg.json"),
        (lambda root: write_dictionary(root / "d", "AutoEncoder"), "config.json"),
    ],
    ids=["llama_scope", "saelens", "sparsify", "dictionary_learning"],
)
def test_json_that_says_nothing_or_nonsense(tmp_path: Path, write: Callable[[Path], Path], name: str) -> None:
    folder = write(tmp_path)
    good = json.loads((folder / name).read_text())
    contents: list[Any] = ["", "[1, 2]", "{", "null", "{}", b"\xff\xfe", "[" * 100_000]
    for key in [key for key in good if isinstance(good[key], int) and not isinstance(good[key], bool)]:
        if key in ("d_model", "d_sae", "d_in", "k", "expansion_factor"):
            contents += [json.dumps(good | {key: wrong}) for wrong in (0, -1, "8", None, 1e400, 10**30)]
    for content in contents:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError):
            load_sae(folder)


def test_npz_shapes_that_the_archive_cannot_hold(tmp_path: Path) -> None:
    path = write_gemma_scope(tmp_path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W_enc.npy", header.getvalue() + bytes(64))
    with pytest.raises(UserError, match=r"claims shape \(1000000000, 1000000000\)"):
        load_sae(path)


def test_npz_bomb(tmp_path: Path) -> None:
    path = write_gemma_scope(tmp_path)
    header = io.BytesIO()
    n = 100 << 20
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (n // 4,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("threshold.npy", header.getvalue() + bytes(n))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"would unpack \d+ bytes"):
        load_sae(path)


def test_compressed_npz_is_fine(tmp_path: Path) -> None:
    plain = load_sae(write_gemma_scope(tmp_path))
    np.savez_compressed(tmp_path / "small.npz", **{n: t.numpy() for n, t in random_tensors().items()})
    assert load_sae(tmp_path / "small.npz").content_hash == plain.content_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_dec": random_tensors()["W_dec"].T.numpy()}, r"W_dec has shape \(8, 24\), expected \(24, 8\)"),
        ({"W_enc": np.zeros((3, 4, 5), np.float32)}, "W_enc must be a matrix"),
        ({"W_enc": None}, "missing keys W_enc"),
        ({"b_enc": np.zeros(F, np.int64)}, "has dtype int64"),
        ({"b_enc": np.zeros(F, "U3")}, "has dtype <U3"),
        ({"b_enc": np.full(F, np.nan, np.float32)}, "b_enc holds NaN or infinity at feature 0"),
        ({"threshold": np.full(F, np.inf, np.float32)}, "threshold holds NaN or infinity at feature 0"),
    ],
)
def test_npz_mistakes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sae(write_gemma_scope(tmp_path, **changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes]]:
    """An intact npz, safetensors and state dict, and their bytes; each example damages them anew."""
    root = tmp_path_factory.mktemp("fuzz")
    files = {
        ".npz": write_gemma_scope(root),
        ".safetensors": gemma_scope_2(root)[1],
        ".pt": write_dictionary(root / "d", "AutoEncoder") / "ae.pt",
    }
    return {suffix: (path, path.read_bytes()) for suffix, path in files.items()}


@settings(max_examples=100, deadline=None)
@given(
    suffix=st.sampled_from([".npz", ".safetensors", ".pt"]),
    where=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    keep=st.one_of(st.just(1.0), st.floats(0, 0.999)),
)
def test_random_damage_is_a_user_error_or_harmless(
    whole: dict[str, tuple[Path, bytes]], suffix: str, where: list[tuple[float, int]], keep: float
) -> None:
    path, content = whole[suffix]
    damaged = bytearray(content)
    for place, byte in where:
        # Headers and directories sit at both ends; data in between is guarded by checksums or has none.
        damaged[int(place * len(damaged))] = byte
    path.write_bytes(damaged[: int(keep * len(damaged))])
    try:
        sae = load_sae(path)
    except UserError as error:
        assert str(path.parent) in str(error) or "read" in str(error)
    else:
        assert (sae.d_model, sae.width) == (D, F)
    finally:
        path.write_bytes(content)


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_pickles_are_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    folder = write_dictionary(tmp_path / "d", "AutoEncoder")
    torch.save(dictionary_state("AutoEncoder") | {"extra": Bomb(trap)}, folder / "ae.pt")
    with pytest.raises(UserError, match="Pickled files are refused"):
        load_sae(folder)
    (folder / "ae.pt").write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(UserError, match="Pickled files are refused"):
        load_sae(folder)
    assert not trap.exists()


def test_state_dicts_that_are_none(tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path / "d", "AutoEncoder")
    huge = torch.zeros(1).expand(10**6, 10**6)
    for content, message in [
        ([1, 2], "expected a state dict"),
        ({"encoder.weight": 3}, "expected a state dict"),
        (dictionary_state("AutoEncoder") | {"encoder.weight": huge}, "claim more data than the file holds"),
        (dictionary_state("GatedAutoEncoder"), "missing keys encoder.bias, bias"),
        ({n: t.t() for n, t in dictionary_state("AutoEncoder").items()}, "seems to be transposed"),
    ]:
        torch.save(content, folder / "ae.pt")
        with pytest.raises(UserError, match=message):
            load_sae(folder)


@pytest.mark.parametrize("name", ["layer3.sae.pt", "trainer_0/checkpoints/ae_1000.pt", "sae.bin", "model.pkl"])
def test_a_pickle_that_exists_is_not_called_missing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(random_tensors(), path)
    for named in (path, path.parent):
        with pytest.raises(UserError, match=rf"{path.name}: .*dialect=StateDict\(name='mine'.*sae=state_dict"):
            load_sae(named)
    if path.suffix != ".pkl":
        said = StateDict(name="mine", activation="jumprelu", subtracts_b_dec=False, last_layer=0)
        assert load_sae(path, dialect=said).content_hash == SparseAutoencoder(**random_tensors()).content_hash
    with pytest.raises(UserError, match=r"not called ae\.pt"):
        load_sae(path, dialect="dictionary_learning")
    with pytest.raises(UserError, match="not found"):
        load_sae(path.with_name("absent.pt"))
