"""dictionary_learning checkpoints (saprmarks): FOLDER/{config.json, ae.pt}."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_match.config.sae_schema import SaeConfig
from sae_match.errors import UserError
from sae_match.saes.activation import GATED, JUMPRELU, RELU, Activation, ActivationKind
from sae_match.saes.dictionary_learning_config import CLASSES, DictionaryConfig, read_dictionary_config
from sae_match.saes.header import SaeHeader
from sae_match.saes.loader import FolderLoader
from sae_match.saes.npz import check_expansion
from sae_match.saes.parametrization import canonical_gated, subtract_input_bias
from sae_match.saes.sparse_autoencoder import SparseAutoencoder
from sae_match.saes.tensor_files import MOST, as_float32, need_file, need_shapes
from sae_match.saes.validation import validate_loaded


class DictionaryLearning(FolderLoader):
    """Loader of dictionary_learning's classes; `ae.pt` is read with torch's restricted unpickler only.

    AutoEncoder and AutoEncoderNew are ReLU SAEs (the latter does not subtract its decoder bias from the input),
    GatedAutoEncoder and JumpReluAutoEncoder what they say, AutoEncoderTopK a TopK SAE, BatchTopKSAE and
    MatryoshkaBatchTopKSAE JumpReLU SAEs with their stored scalar threshold (-1 = never set: then they only match).
    The library multiplies the activations of gated and JumpReLU dictionaries by decoder norms and divides by them
    before decoding; here activations stay in the units of the stored weights, as in SAELens.
    """

    FILES: ClassVar[tuple[str, ...]] = ("config.json", "ae.pt")

    def header(self, path: Path, layer: int | None, cfg: SaeConfig) -> SaeHeader:
        """Dimensions, site and layer from `config.json`; `ae.pt` is not opened.

        Raises:
            UserError: unreadable config, or an unsupported class.
        """
        path = self.folder(path)
        need_file(path / self.FILES[1])
        settings = read_dictionary_config(path / self.FILES[0])
        header = SaeHeader(settings.d_model, settings.width, settings.site, settings.layer)
        return header.checked(str(path), cfg, layer)

    def read(self, path: Path, layer: int | None, cfg: SaeConfig) -> SparseAutoencoder:
        """Read one folder.

        Raises:
            UserError: as `header`, anything in `ae.pt` but tensors, missing keys, other dimensions, or invalid values.
        """
        header = self.header(path, layer, cfg)
        path = self.folder(path)
        settings, weights = read_dictionary_config(path / self.FILES[0]), path / self.FILES[1]
        state = read_state(weights)
        keys = CLASSES[settings.dict_class]
        need_shapes(
            weights, {n: tuple(t.shape) for n, t in state.items()}, keys.shapes(settings.d_model, settings.width)
        )
        tensors: dict[str, Any] = {name: as_float32(weights, key, state[key]) for name, key in keys.names.items()}
        tensors = {name: t.T if keys.names[name] in keys.transposed else t for name, t in tensors.items()}
        if keys.subtracts_bias:
            subtract_input_bias(tensors)
        if settings.dict_class == "GatedAutoEncoder":
            tensors = canonical_gated(tensors)
        activation, threshold = _activation(weights, settings, state)
        tensors.setdefault("threshold", torch.full((settings.width,), threshold))
        sae = SparseAutoencoder(**tensors, activation=activation, site=header.site, source=str(path))
        return validate_loaded(sae, layer, tensors.get("threshold"), unit_norm=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, unpickled by torch's restricted unpickler: nothing in the file can run.

    Raises:
        UserError: missing or unreadable file, other content than tensors, or tensors larger than the file.
    """
    try:
        if zipfile.is_zipfile(need_file(path)):
            with zipfile.ZipFile(path) as archive:
                check_expansion(path, archive)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        # A damaged pickle can make the unpickler raise almost anything.
        raise UserError(
            f"{path}: not a readable file of plain tensors ({type(error).__name__}). Pickled objects are refused; "
            "if the download broke off, delete the file and fetch it again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state dict of tensors")
    if sum(value.numel() * value.element_size() for value in state.values()) > path.stat().st_size:
        raise UserError(f"{path}: its tensors claim more data than the file holds")
    return {str(name): value for name, value in state.items()}


def _activation(path: Path, settings: DictionaryConfig, state: dict[str, Tensor]) -> tuple[Activation, float]:
    """The activation, and the threshold of classes that have one for all features."""
    stored = _scalar(state, "threshold", -1.0)
    if settings.dict_class == "AutoEncoderTopK":
        kept = stored if stored > 0 else None
        return Activation(ActivationKind.topk, k=_k(path, settings, state), stored_threshold=kept), 0.0
    if settings.dict_class in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        if stored > 0:
            return JUMPRELU, stored
        return Activation(ActivationKind.batch_topk, k=_k(path, settings, state)), 0.0
    kinds = {"GatedAutoEncoder": GATED, "JumpReluAutoEncoder": JUMPRELU}
    return kinds.get(settings.dict_class, RELU), 0.0


def _scalar(state: dict[str, Tensor], name: str, default: float) -> float:
    """A tensor of one finite real number, or the default."""
    tensor = state.get(name)
    if tensor is None or tensor.numel() != 1 or tensor.is_complex():
        return default
    value = float(tensor)
    return value if math.isfinite(value) else default


def _k(path: Path, settings: DictionaryConfig, state: dict[str, Tensor]) -> int:
    k = int(_scalar(state, "k", settings.k or 0))
    if not 1 <= k <= MOST:
        raise UserError(f"{path}: {settings.dict_class} without its number of active features k")
    return k
