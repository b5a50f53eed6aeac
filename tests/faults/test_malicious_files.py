"""Files made to harm: bombs, paths in names, absurd counts. Each is refused by name, before it costs memory or time."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_match import UserError, load_sae
from sae_match.judging import descriptions
from sae_match.judging.descriptions import read_explanations
from sae_match.language_model.gguf import check_gguf
from sae_match.language_model.hub import _shards
from sae_match.saes import save_native
from sae_match.saes.formats.native import Native
from sae_match.saes.loading import SaeSource, format_named
from sae_match.text.sources.local import LocalText
from tests.builders import random_sae
from tests.faults.fuzz_targets import CANARY, PICKLE
from tests.saes.layouts import write_dictionary, write_gemma_scope, write_gemma_scope_2


def npy(n_bytes: int, descr: str = "<f4") -> bytes:
    """Header of an array of zeros, and its data."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": (n_bytes // 4,)})
    return header.getvalue() + bytes(n_bytes)


@pytest.mark.parametrize("name", ["../../evil.npy", "/etc/evil.npy", "..\\evil.npy", "a/b.npy", "W_enc.txt"])
def test_npz_members_with_paths_in_their_names(tmp_path: Path, name: str) -> None:
    path = write_gemma_scope(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, npy(64))
    with pytest.raises(UserError, match="is not the name of an array"):
        load_sae(path)
    assert not list(tmp_path.rglob("evil*"))


def test_npz_of_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_gemma_scope(tmp_path, W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=r"holds Python objects\. Pickled files are refused"):
        load_sae(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W_enc.npy", PICKLE)
    with pytest.raises(UserError, match="Pickled files are refused"):
        load_sae(path)
    path.write_bytes(PICKLE)
    with pytest.raises(UserError, match="Pickled files are refused"):
        load_sae(path)
    assert not (tmp_path / CANARY).exists()


def test_npz_bomb_in_many_small_members(tmp_path: Path) -> None:
    """None of them is suspicious alone."""
    path, member = tmp_path / "params.npz", npy(32 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(4):
            archive.writestr(f"array_{i}.npy", member)
    with pytest.raises(UserError, match=r"would unpack \d+ bytes to 134\d+; no weights do"):
        load_sae(path)


def test_npz_members_that_share_their_bytes(tmp_path: Path) -> None:
    """A directory that lists one member under a thousand names."""
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(1 << 20))
        info = archive.infolist()[0]
        for i in range(900):
            copy = zipfile.ZipInfo(f"a_{i}.npy")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(copy, name, getattr(info, name))
            archive.filelist.append(copy)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no weights do"):
        load_sae(path)


def test_npz_of_too_many_members_and_of_doubled_names(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(1001):
            archive.writestr(f"a{i}.npy", b"")
    with pytest.raises(UserError, match="1001 arrays"):
        load_sae(path)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("W_enc.npy", npy(64))
    with pytest.raises(UserError, match="2 arrays, 1 different names"):
        load_sae(path)


def test_npz_header_that_only_opens_brackets(tmp_path: Path) -> None:
    """Found by fuzzing: numpy's tokenizer raises an error of its own."""
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00" + (5000).to_bytes(2, "little") + b"{" * 5000)
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        load_sae(path)


def test_state_dict_bomb(tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path / "d", "AutoEncoder")
    with zipfile.ZipFile(folder / "ae.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data/0", bytes(100 << 20))
    with pytest.raises(UserError, match="no weights do"):
        load_sae(folder)


def safetensors(entries: str, data: bytes = bytes(768), length: int | None = None) -> bytes:
    header = entries.encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


F32 = '"dtype": "F32", "shape": [8, 24]'


@pytest.mark.parametrize(
    "content",
    [
        safetensors('{"w_enc": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 768]}}'),
        safetensors(f'{{"w_enc": {{{F32}, "data_offsets": [0, 768]}}, "w_dec": {{{F32}, "data_offsets": [0, 768]}}}}'),
        safetensors(f'{{"w_enc": {{{F32}, "data_offsets": [768, 1536]}}}}'),
        safetensors(f'{{"w_enc": {{{F32}, "data_offsets": [768, 0]}}}}'),
        safetensors("{}", length=2**63),
        safetensors("{}", length=90_000_000),
        safetensors(f'{{"w_enc": {{{F32}, "data_offsets": [0, 768]}}, "w_enc": {{{F32}, "data_offsets": [0, 9]}}}}'),
        safetensors('{"w_enc": {"dtype": "OBJECT", "shape": [8, 24], "data_offsets": [0, 768]}}'),
        safetensors("[" * 100_000),
    ],
    ids=["shape", "overlap", "beyond the file", "backwards", "length", "length 2", "doubled", "dtype", "nested"],
)
def test_safetensors_headers(tmp_path: Path, content: bytes) -> None:
    path = write_gemma_scope_2(tmp_path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_sae(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filename": "../secret_{layer:02d}.safetensors"}, "without '..'"),
        ({"filename": "/etc/layer_{layer}.safetensors"}, "relative and without"),
        ({"filename": "~/layer_{layer}.safetensors"}, "relative and without"),
        ({"filename": "..\\{layer}.safetensors"}, "without '..'"),
        ({"filename": "{layer:999999999d}"}, "only {layer} and {next}"),
        ({"filename": "{layer.__class__}"}, "only {layer} and {next}"),
        ({"filename": "{0.__init__}"}, "only {layer} and {next}"),
        ({"filename": "a" * 5000}, "does not exist"),
        ({"filename": "a\x00b"}, "relative and without"),
        ({"dialect": "saelens", "folder": "../{layer}"}, "without '..'"),
        ({"dialect": "saelens", "folder": "hf:/{layer}"}, "relative and without"),
        ({"filename": "c:/{layer}.safetensors"}, "relative and without"),
        ({"dialect": "gemma_scope_2", "width": "../../x", "l0": "small"}, "without '..'"),
        ({"dialect": "gemma_scope_2", "l0": "small", "repo_id": "a/b", "root": None,
          "width": "x/../../y"}, "without '..'"),
    ],
)  # fmt: skip
def test_names_from_the_configuration_stay_inside(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    root = tmp_path / "saes"
    save_native(random_sae(), root / "layer_00.safetensors")
    save_native(random_sae(), tmp_path / "secret_00.safetensors")
    options = {"name": "x", "root": str(root), "last_layer": 3, **changes}
    kind = format_named(str(options.pop("dialect", "native")))
    with pytest.raises(UserError, match=message):
        SaeSource(kind(**options)).load(0)  # type: ignore[arg-type]


def test_links(tmp_path: Path) -> None:
    """Followed where they lead to a file, as in the hub client's cache; loops and devices are no SAE."""
    save_native(random_sae(), tmp_path / "blobs" / "abc")
    (tmp_path / "layer_00.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    (tmp_path / "layer_01.safetensors").symlink_to(tmp_path / "layer_01.safetensors")
    (tmp_path / "layer_02.safetensors").symlink_to("/dev/zero")
    source = SaeSource(Native(name="x", root=str(tmp_path), last_layer=3))
    assert source.load(0).width == 24
    for layer in (1, 2):
        with pytest.raises(UserError, match="does not exist"):
            source.load(layer)


@pytest.mark.parametrize(
    "names", [["../../x.safetensors"], ["/etc/passwd"], ["a/b.bin"], [["x"]], [3], [".."], ["a\\b"], []]
)
def test_a_models_index_names_files_beside_it_only(tmp_path: Path, names: list[object]) -> None:
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="index"):
        _shards(tmp_path, "model.safetensors")
    good = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(good))
    assert len(_shards(tmp_path, "model.safetensors")) == 2


HUGE = 2**60
PAIR = struct.pack("<Q3sI", 3, b"key", 9)
HEADER = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + struct.pack("<QQ", HUGE, 0), f"0 entries and {HUGE} tensors"),
        (HEADER + struct.pack("<QQ", 0, HUGE), f"{HUGE} entries and 0 tensors"),
        # gguf's own reader loops 2^60 times over this one: values past the file's end read as empty.
        (HEADER + struct.pack("<QQ", 0, 1) + PAIR + struct.pack("<IQ", 4, HUGE), "more bytes"),
        (HEADER + struct.pack("<QQ", 0, 1) + PAIR + struct.pack("<IQ", 8, HUGE), f"an array of {HUGE} strings"),
        (HEADER + struct.pack("<QQ", 0, 1) + struct.pack("<Q", HUGE) + bytes(20), "more bytes"),
        (HEADER + struct.pack("<QQ", 1, 0) + struct.pack("<Q1sIQQ", 1, b"w", 2, 2**40, 2**40) + bytes(12), "weights"),
        (HEADER + struct.pack("<QQ", 1, 0) + struct.pack("<Q1sI", 1, b"w", 2**31) + bytes(64), "dimensions"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99"),
        (b"PK\x03\x04", "does not begin with GGUF"),
        (b"GGUF", "not a whole GGUF file"),
    ],
)
def test_gguf_counts_that_the_file_cannot_hold(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_gguf(tmp_path / "model.gguf")


def test_the_embedded_models_header_is_fine() -> None:
    from sae_match.language_model.embedded import find_gguf

    check_gguf(find_gguf())


def explanations(tmp_path: Path, text: bytes, packed: bool = True) -> str:
    folder = tmp_path / "3"
    folder.mkdir()
    name = "batch-0.jsonl.gz" if packed else "batch-0.jsonl"
    (folder / name).write_bytes(gzip.compress(text, 1) if packed else text)
    return str(tmp_path / "{layer}")


GOOD = b'{"index": "5", "description": "sums", "layer": "3-res"}\n'


@pytest.mark.parametrize("packed", [True, False])
def test_explanations_in_one_endless_line(tmp_path: Path, packed: bool) -> None:
    folder = explanations(tmp_path, GOOD + b" " * (4 << 20) + b"\n", packed)
    with pytest.raises(UserError, match="a line of more than 1048576 characters"):
        read_explanations(folder, 3, 24)


def test_explanations_that_unpack_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = explanations(tmp_path, GOOD + b" \n" * (1 << 20))
    monkeypatch.setattr(descriptions, "ALWAYS_FINE", 1 << 20)
    with pytest.raises(UserError, match="which is no list of explanations"):
        read_explanations(folder, 3, 24)


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"index": 1e400, "description": ""}', b'{"index": ' + b"9" * 5000 + b"}", b"\xff\n", b"3"],
)
def test_malformed_explanations(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(UserError, match=r"batch-0\.jsonl"):
        read_explanations(explanations(tmp_path, GOOD + line, packed=False), 3, 24)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 100_000, "is not JSON"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"text": "\\ud800"}', "half a character"),
        (b'{"text": ["a"]}', "holds list, not text"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_malformed_local_texts(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    source = LocalText(name="x", path=str(path))
    with pytest.raises(UserError, match=message):
        list(source.read({}))


def test_parquet_damaged_behind_a_whole_footer(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "text.parquet"
    pq.write_table(pa.table({"text": [f"words {i}" * 50 for i in range(200)]}), path)
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    source = LocalText(name="x", path=str(path))
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(source.read({}))


def test_scalars_of_a_state_dict_that_are_no_numbers(tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path / "d", "AutoEncoderTopK")
    state = torch.load(folder / "ae.pt", weights_only=True)
    for wrong in (torch.tensor(float("nan")), torch.tensor(float("inf")), torch.tensor(1j)):
        torch.save(state | {"k": wrong, "threshold": wrong}, folder / "ae.pt")
        config = json.loads((folder / "config.json").read_text())
        config["trainer"].pop("k", None)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="without its number of active features k"):
            load_sae(folder)
