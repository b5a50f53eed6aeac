"""dictionary_learning checkpoints (saprmarks): FOLDER/{config.json, ae.pt}."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import GATED, JUMPRELU, RELU, Activation, ActivationKind
from sae_match.saes.formats.base import FolderFormat, SaeHeader, validate_loaded
from sae_match.saes.formats.reading import (
    MOST,
    as_float32,
    check_expansion,
    need_file,
    need_shapes,
    number,
    read_json,
)
from sae_match.saes.parametrization import canonical_gated, subtract_input_bias
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Keys:
    """State-dict keys of a class by canonical name.

    Attributes:
        names: canonical parameter -> key.
        subtracts_bias: the decoder bias is subtracted from the input.
    """

    names: dict[str, str]
    subtracts_bias: bool

    @property
    def transposed(self) -> tuple[str, ...]:
        """Keys of torch Linear layers, which store [out, in]."""
        return ("encoder.weight", "decoder.weight")

    def shapes(self, d_model: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shape of every key."""
        canonical: dict[str, tuple[int, ...]] = {
            "W_enc": (d_model, width),
            "W_dec": (width, d_model),
            "b_dec": (d_model,),
        }
        found = {key: canonical.get(name, (width,)) for name, key in self.names.items()}
        return {key: shape[::-1] if key in self.transposed else shape for key, shape in found.items()}


_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_GATED = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias"}
CLASSES: dict[str, Keys] = {
    "AutoEncoder": Keys({**_LINEAR, "b_dec": "bias"}, True),
    "AutoEncoderNew": Keys({**_LINEAR, "b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": Keys({**_GATED, "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}, True),
    "JumpReluAutoEncoder": Keys({**_PLAIN, "threshold": "threshold"}, False),
    "AutoEncoderTopK": Keys({**_LINEAR, "b_dec": "b_dec"}, True),
    "BatchTopKSAE": Keys({**_LINEAR, "b_dec": "b_dec"}, True),
    "MatryoshkaBatchTopKSAE": Keys(_PLAIN, True),
}
"""Keys of each supported `dict_class`."""


@option
class DictionaryLearning(FolderFormat):
    """Loader of dictionary_learning's classes; `ae.pt` is read with torch's restricted unpickler only.

    AutoEncoder and AutoEncoderNew are ReLU SAEs (the latter does not subtract its decoder bias from the input),
    GatedAutoEncoder and JumpReluAutoEncoder what they say, AutoEncoderTopK a TopK SAE, BatchTopKSAE and
    MatryoshkaBatchTopKSAE JumpReLU SAEs with their stored scalar threshold (-1 = never set: then they only match).
    The library multiplies the activations of gated and JumpReLU dictionaries by decoder norms and divides by them
    before decoding; here activations stay in the units of the stored weights, as in SAELens.
    """

    dialect: ClassVar[str] = "dictionary_learning"
    FILES: ClassVar[tuple[str, ...]] = ("config.json", "ae.pt")

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions, site and layer from `config.json`; `ae.pt` is not opened.

        Raises:
            UserError: unreadable config, or an unsupported class.
        """
        path = self.folder_of(path)
        need_file(path / self.FILES[1])
        settings = read_dictionary_config(path / self.FILES[0])
        return SaeHeader(settings.d_model, settings.width, settings.site, settings.layer)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder.

        Raises:
            UserError: as `header`, anything in `ae.pt` but tensors, missing keys, other dimensions, or invalid values.
        """
        header = self.header(path, layer)
        path = self.folder_of(path)
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


@dataclass(frozen=True)
class DictionaryConfig:
    """What `config.json` says.

    Attributes:
        site: from `submodule_name`; unknown where that is missing or says something else.
    """

    dict_class: str
    d_model: int
    width: int
    k: int | None
    site: Site
    layer: int | None


def read_dictionary_config(path: Path) -> DictionaryConfig:
    """Read `config.json`.

    Raises:
        UserError: unreadable, without the trainer's entries, or of a class that is not supported.
    """
    config = read_json(path)
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        raise UserError(f"{path}: no `trainer` entry; is this the config of a dictionary_learning run?")
    dict_class = trainer.get("dict_class")
    if not isinstance(dict_class, str) or dict_class not in CLASSES:
        raise UserError(f"{path}: trainer.dict_class={repr(dict_class)[:100]}; supported: {', '.join(CLASSES)}")
    layer, k = trainer.get("layer"), trainer.get("k")
    return DictionaryConfig(
        dict_class=dict_class,
        d_model=number(path, config, "trainer.activation_dim"),
        width=number(path, config, "trainer.dict_size"),
        k=k if isinstance(k, int) and k <= MOST else None,
        site=_site(trainer, config.get("buffer")),
        layer=layer if isinstance(layer, int) and abs(layer) <= MOST else None,
    )


def _site(trainer: Mapping[str, Any], buffer: object) -> Site:
    """The site in `submodule_name` (such as resid_post_layer_8); a buffer of a module's *inputs* is none of them."""
    if isinstance(buffer, Mapping) and buffer.get("io", "out") != "out":
        return Site.unknown
    name = str(trainer.get("submodule_name") or "").lower()
    for site in (Site.resid_post, Site.resid_pre, Site.resid_mid):
        if site.value in name:
            return site
    if "mlp" in name:
        return Site.mlp_out
    return Site.attn_out if re.search(r"att(ention|n)", name) else Site.unknown
