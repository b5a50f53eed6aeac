"""Checkpoint dialects: one class each, with its options; a user's own class is passed to `load_sae` as `dialect`."""

from __future__ import annotations

from pathlib import Path

from sae_match.errors import UserError
from sae_match.saes.formats.base import FolderFormat, SaeFormat, SaeHeader
from sae_match.saes.formats.dictionary_learning import DictionaryLearning
from sae_match.saes.formats.gemma_scope import GemmaScope
from sae_match.saes.formats.gemma_scope_2 import GemmaScope2
from sae_match.saes.formats.llama_scope import LlamaScope
from sae_match.saes.formats.native import Native
from sae_match.saes.formats.saelens import Saelens
from sae_match.saes.formats.sparsify import Sparsify

__all__ = ["FORMATS", "FolderFormat", "SaeFormat", "SaeHeader", "detect_format", "format_named"]

FORMATS: tuple[type[SaeFormat], ...] = (
    Native,
    GemmaScope,
    GemmaScope2,
    LlamaScope,
    Saelens,
    Sparsify,
    DictionaryLearning,
)
"""The dialects that `load_sae` detects and knows by name."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def format_named(dialect: str) -> type[SaeFormat]:
    """The class of a dialect.

    Raises:
        UserError: no dialect of `FORMATS` has this name.
    """
    names = {kind.dialect: kind for kind in FORMATS}
    if dialect not in names:
        raise UserError(f"dialect={dialect}: must be one of {', '.join(names)}, or a class of your own")
    return names[dialect]


def detect_format(path: Path) -> type[SaeFormat]:
    """The dialect of a folder by the files in it, of a file by its name, its neighbors and its tensors' names.

    Raises:
        UserError: missing, unknown, or more than one dialect fits.
    """
    found = [kind for kind in FORMATS if kind is not Native and kind.detect(path)]
    if not found and Native.detect(path):
        return Native
    if len(found) == 1:
        return found[0]
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES) if path.is_dir() else [path]
    if not found and len(pickles) == 1:
        raise _unread(pickles[0])
    fits = f"several dialects ({', '.join(kind.dialect for kind in found)})" if found else "no known dialect"
    names = ", ".join(kind.dialect for kind in FORMATS)
    raise UserError(f"{path}: fits {fits} of SAE checkpoints. Say which with dialect=..., one of {names}")


def _unread(path: Path) -> UserError:
    if path.suffix not in PICKLES or not path.is_file():
        return UserError(f"{path}: unknown SAE file type; expected .safetensors, .npz, ae.pt or the folder of a layer")
    return UserError(
        f"{path}: a {path.suffix} file is a pickle, which can run code; of these only ae.pt of dictionary_learning is "
        f"read, with config.json beside it. To convert another one: state = torch.load({path.name!r}, "
        "weights_only=True); sae = SparseAutoencoder.from_state_dict(state, activation=..., subtracts_b_dec=...); "
        "sae_match.saes.save_native(sae, 'layer_00.safetensors')"
    )
