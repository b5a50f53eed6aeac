"""Hostile inputs drawn by hypothesis, and what may come of them: what the file holds, or a clear refusal.

Every target takes one drawn input and a working folder, and returns `accepted` or `refused`. Anything else, a canary
file that some payload created, or the harness's time limit, is a failure. `test_fuzz.py` runs some hundred inputs per
target, `fuzz.py` as many as one asks for.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sae_match import UserError, load_sae
from sae_match.judging.descriptions import read_explanations
from sae_match.language_model.gguf import check_gguf
from tests.saes.layouts import (
    write_dictionary,
    write_gemma_scope,
    write_gemma_scope_2,
    write_llama_scope,
    write_llama_scope_r1,
    write_saelens,
    write_sparsify,
    write_temporal,
)

CANARY = "canary"
ACCEPTED, REFUSED = "accepted", "refused"


class Payload:
    """Creates the canary file (in the working directory) when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path(CANARY),))


PICKLE = pickle.dumps(Payload())


@dataclass(frozen=True)
class Target:
    """A strategy, and what is done with what it draws."""

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any, Path], str]


def outcome(load: Callable[[], object]) -> str:
    """What came of it; errors other than the project's own pass through and fail the run."""
    try:
        load()
    except UserError as error:
        if not str(error).strip():
            raise AssertionError("a refusal without a word") from error
        return REFUSED
    return ACCEPTED


# -- damage that any file can take ------------------------------------------------------------------------

flips = st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=4)
keep = st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))


def damaged(content: bytes, changes: list[tuple[float, int]], share: float) -> bytes:
    """The content with some bytes changed and its end cut off."""
    changed = bytearray(content)
    for place, byte in changes if changed else ():
        changed[int(place * len(changed))] = byte
    return bytes(changed[: round(share * len(changed))])


# -- npz --------------------------------------------------------------------------------------------------

sizes = st.one_of(st.sampled_from([0, 1, 8, 24, 192, -1, 2**31, 2**63, 10**30]), st.integers(-5, 300))
shapes = st.one_of(st.sampled_from([(8, 24), (24, 8), (8,), (24,)]), st.lists(sizes, max_size=4).map(tuple))
dtypes = st.sampled_from(["<f4", "<f2", ">f8", "<i8", "|O", "<U9", "|V4", "<c8", "|b1", "f4, i4", "nonsense", "|S0"])
npz_names = st.sampled_from(
    ["W_enc.npy", "W_dec.npy", "b_enc.npy", "b_dec.npy", "threshold.npy", "w_ENC.npy", "scaling_factor.npy", "../x.npy",
     "/etc/x.npy", "a\\b.npy", "x.txt", " ", ".npy", "W_enc"]
)  # fmt: skip
headers = st.one_of(
    st.tuples(dtypes, st.booleans(), shapes).map(
        lambda d: repr({"descr": d[0], "fortran_order": d[1], "shape": d[2]}).encode()
    ),
    st.sampled_from([b"{" * 5000, b"(" * 9000, b"__import__('pathlib').Path('canary').touch()", b"{}", b"1" * 9000]),
    st.binary(max_size=60),
)
versions = st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09", b"\x01\x00", b"\x01\x00"])
data = st.one_of(st.sampled_from([bytes(768), bytes(32), bytes(96), PICKLE, bytes(1 << 16)]), st.binary(max_size=80))
members = st.lists(st.tuples(npz_names, versions, headers, data), min_size=1, max_size=6)
methods = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])


def _npz(drawn: tuple[Any, ...], root: Path) -> str:
    kind, entries, method, changes, share = drawn
    path = root / "params.npz"
    if kind == "whole":
        content = write_gemma_scope(root).read_bytes()
    else:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            for name, version, header, body in entries:
                text = header + b" " * (-(len(header) + 11) % 64) + b"\n"
                length = len(text).to_bytes(2 if version[:1] == b"\x01" else 4, "little")
                archive.writestr(name, b"\x93NUMPY" + version + length + text + body)
        content = packed.getvalue()
    path.write_bytes(damaged(content, changes, share))
    return outcome(lambda: load_sae(path))


# -- safetensors ------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-2, 200), st.sampled_from([2**31, 2**63, 2**64, 10**40, 1e300, 0.5, -0.0]), st.booleans(), st.none()
)
st_dtypes = st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "Q4", 5, None])
st_tensor = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st_dtypes,
        "shape": st.one_of(st.sampled_from([[8, 24], [24, 8], [24], [8]]), st.lists(numbers, max_size=4)),
        "data_offsets": st.lists(numbers, max_size=3),
    },
)
st_names = st.sampled_from(["W_enc", "W_dec", "b_enc", "b_dec", "threshold", "scale", "w_enc", "__metadata__", "../x"])
st_headers = st.one_of(
    st.lists(st.tuples(st_names, st.one_of(st_tensor, numbers, st.text(max_size=5))), max_size=7).map(
        # Joined by hand: a name may come twice.
        lambda pairs: ("{" + ", ".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in pairs) + "}").encode()
    ),
    st.sampled_from([b"[" * 20_000, b'{"a":' * 20_000, b"", b"null", b"\xff\xfe{}"]),
    st.binary(max_size=60),
)
lengths = st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]))


def _safetensors(drawn: tuple[Any, ...], root: Path) -> str:
    kind, header, length, body, changes, share, dialect = drawn
    path = root / "params.safetensors"
    if kind == "whole":
        content = write_gemma_scope_2(root).read_bytes()
    else:
        content = (len(header) if length is None else length).to_bytes(8, "little") + header + body
    path.write_bytes(damaged(content, changes, share))
    return outcome(lambda: load_sae(path, dialect=dialect))


# -- cfg.json and its likes -------------------------------------------------------------------------------

json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 40),
        st.sampled_from([8, 24, 10**30, 10**400, -1, 1e400, float("nan"), 1e-320, 0.5]), st.text(max_size=6),
        st.sampled_from(["topk", "jumprelu", "gated", "standard", "blocks.3.hook_resid_post", "blocks.99999999999.x",
                         "AutoEncoder", "BatchTopKSAE", "resid_post_layer_3", "${oc.env:HOME}", "\ud800", "{layer}"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
WRITERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "llama_scope": (write_llama_scope, "hyperparams.json"),
    "saelens": (
        lambda root: write_saelens(root / "s", {"architecture": "jumprelu", "hook_name": "blocks.3.hook_resid_post"}),
        "cfg.json",
    ),
    "llama_scope_r1": (lambda root: write_llama_scope_r1(root / "s", norm=2.5), "config.json"),
    "temporal": (lambda root: write_temporal(root / "s"), "conf.yaml"),
    "sparsify": (write_sparsify, "cfg.json"),
    "dictionary_learning": (lambda root: write_dictionary(root / "d", "AutoEncoder"), "config.json"),
}
JSON_KEYS = [
    "d_model", "d_sae", "d_in", "k", "act_fn", "jump_relu_threshold", "dataset_average_activation_norm",
    "hook_point_out", "hook_point_in", "norm_activation", "architecture", "hook_name", "metadata", "activation_fn",
    "activation", "llm", "sae", "sparsity_include_decoder_norm", "use_decoder_bias",
    "activation_fn_kwargs", "normalize_activations", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm",
    "expansion_factor", "num_latents", "transcode", "signed", "trainer", "buffer", "activation_dim", "dict_size",
    "dict_class", "layer", "submodule_name", "in", "out", "hook_head_index", "model_from_pretrained_kwargs",
]  # fmt: skip
changes_of_json = st.dictionaries(st.sampled_from(JSON_KEYS), json_values, max_size=4)
raw_json = st.one_of(
    st.none(), st.none(), st.none(), st.binary(max_size=40), st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000]),
    st.sampled_from([b'{"d_in": ' + b"9" * 5000 + b"}", b"\xff\xfe{}", b"NaN", b'{"k": 1, "k": {}}', b"{}"]),
)  # fmt: skip


def _cfg_json(drawn: tuple[Any, ...], root: Path) -> str:
    dialect, changed, inside_trainer, raw = drawn
    write, name = WRITERS[dialect]
    folder = write(root)
    cfg = json.loads((folder / name).read_text())
    if inside_trainer and isinstance(cfg.get("trainer"), dict):
        cfg["trainer"] |= changed
    else:
        cfg |= changed
    (folder / name).write_bytes(json.dumps(cfg).encode() if raw is None else raw)
    return outcome(lambda: load_sae(folder, dialect=dialect))


# -- explanations and GGUF headers ------------------------------------------------------------------------


def _explanations(drawn: tuple[list[Any], bool, list[tuple[float, int]], float], root: Path) -> str:
    lines, packed, changes, share = drawn
    import gzip

    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode(
        errors="surrogatepass"
    )
    folder = root / "3"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    content = gzip.compress(text) if packed else text
    (folder / ("batch-0.jsonl.gz" if packed else "batch-0.jsonl")).write_bytes(damaged(content, changes, share))
    return outcome(lambda: read_explanations(str(root / "{layer}"), 3, 24))


explanation = st.fixed_dictionaries(
    {"index": st.one_of(st.integers(-2, 30), st.integers(0, 23).map(str), json_values), "description": json_values},
    optional={"layer": st.one_of(st.just("3-res"), json_values), "typeName": json_values, "id": json_values},
)
explanation_lines = st.lists(st.one_of(explanation, json_values, st.text(max_size=9), st.just("[" * 9000)), max_size=6)

gguf_numbers = st.one_of(st.integers(0, 12), st.sampled_from([2**32 - 1, 2**60, 2**63, 2**64 - 1]))
gguf_parts = st.lists(
    st.one_of(
        gguf_numbers.map(lambda n: n.to_bytes(8, "little")),
        st.integers(0, 15).map(lambda n: n.to_bytes(4, "little")),
        st.binary(max_size=12),
        st.just((3).to_bytes(8, "little") + b"abc"),
    ),
    max_size=40,
)


def _gguf(drawn: tuple[int, list[bytes], list[tuple[float, int]], float], root: Path) -> str:
    version, parts, changes, share = drawn
    content = b"GGUF" + version.to_bytes(4, "little") + b"".join(parts)
    (root / "model.gguf").write_bytes(damaged(content, changes, share))
    return outcome(lambda: check_gguf(root / "model.gguf"))


def targets() -> dict[str, Target]:
    """Every target by name."""
    kind = st.sampled_from(["made", "made", "whole"])
    dialects = st.sampled_from(["native", "gemma_scope_2", None])
    return {
        "npz": Target(st.tuples(kind, members, methods, flips, keep), _npz),
        "safetensors": Target(st.tuples(kind, st_headers, lengths, data, flips, keep, dialects), _safetensors),
        "cfg.json": Target(
            st.tuples(st.sampled_from(sorted(WRITERS)), changes_of_json, st.booleans(), raw_json), _cfg_json
        ),
        "explanations": Target(st.tuples(explanation_lines, st.booleans(), flips, keep), _explanations),
        "gguf": Target(st.tuples(st.sampled_from([2, 3, 3, 1, 2**31]), gguf_parts, flips, keep), _gguf),
    }
