"""Which dialect a file or folder is written in, where that is unambiguous."""

from __future__ import annotations

from pathlib import Path

from sae_match.config.sae_schema import Dialect
from sae_match.errors import UserError
from sae_match.saes.dictionary_learning import DictionaryLearning
from sae_match.saes.llama_scope import LlamaScope
from sae_match.saes.saelens import Saelens
from sae_match.saes.sparse_autoencoder import PARAMETERS
from sae_match.saes.sparsify import Sparsify
from sae_match.saes.tensor_files import safetensors_shapes

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_FOLDERS: dict[Dialect, tuple[str, ...]] = {
    Dialect.saelens: Saelens.FILES,
    Dialect.sparsify: Sparsify.FILES,
    Dialect.llama_scope: LlamaScope.FILES,
    Dialect.dictionary_learning: DictionaryLearning.FILES,
    Dialect.gemma_scope_2: ("params.safetensors",),
}


def detect_dialect(path: Path) -> Dialect:  # noqa: PLR0911 - goes with the classes of dialects
    """The dialect of a folder by the files in it, of a file by its name, its neighbours and its tensors' names.

    Raises:
        UserError: missing, unknown, or more than one dialect fits.
    """
    if path.is_dir():
        pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
        if len(pickles) == 1 and not any(_all_there(path, files) for files in _FOLDERS.values()):
            return detect_dialect(pickles[0])
        return _only(path, [dialect for dialect, files in _FOLDERS.items() if _all_there(path, files)])
    if path.suffix == ".npz":
        return Dialect.gemma_scope
    if path.name == DictionaryLearning.FILES[-1]:
        return Dialect.dictionary_learning
    if path.suffix != ".safetensors":
        raise _unread(path)
    inside = [
        dialect
        for dialect, files in _FOLDERS.items()
        if path.as_posix().endswith(f"/{files[-1]}") and _all_there(path.parents[files[-1].count("/")], files)
    ]
    if inside:
        return _only(path, inside)
    names = set(safetensors_shapes(path))
    if {name.lower() for name in PARAMETERS} <= names:
        return Dialect.gemma_scope_2
    if path.name == Saelens.FILES[-1]:
        raise UserError(
            f"{path}: named as SAELens names its weights, but without cfg.json; dialect='native' if it is not"
        )
    # Whatever else there is, the native reader says which names it misses.
    return Dialect.native


def _all_there(folder: Path, files: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in files)


def _unread(path: Path) -> UserError:
    if path.suffix not in PICKLES or not path.is_file():
        return UserError(f"{path}: unknown SAE file type; expected .safetensors, .npz, ae.pt or the folder of a layer")
    return UserError(
        f"{path}: a {path.suffix} file is a pickle, which can run code; of these only ae.pt of dictionary_learning is "
        f"read, with config.json beside it. To convert another one: state = torch.load({path.name!r}, "
        "weights_only=True); sae = SparseAutoencoder.from_state_dict(state, activation=..., subtracts_b_dec=...); "
        "sae_match.saes.save_native(sae, 'layer_00.safetensors')"
    )


def _only(path: Path, fitting: list[Dialect]) -> Dialect:
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(d.value for d in fitting)
    raise UserError(
        f"{path}: "
        + (f"fits several dialects ({found})" if fitting else "fits no known dialect of SAE checkpoints")
        + f". Say which with dialect=..., one of {', '.join(Dialect)}"
    )
