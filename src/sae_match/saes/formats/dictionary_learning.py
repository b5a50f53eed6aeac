"""dictionary_learning checkpoints (saprmarks): FOLDER/{config.json, ae.pt}."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import ActivationKind, Convention
from sae_match.saes.formats.base import FolderFormat, SaeHeader, build_sae
from sae_match.saes.formats.reading import MAX_INTEGER, need_file, need_layout, number, read_json, read_state_dict
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

_LINEAR = {"encoder.weight": "F d", "encoder.bias": "F", "decoder.weight": "d F"}
_PLAIN = {"W_enc": "d F", "b_enc": "F", "W_dec": "F d", "b_dec": "d"}
_GATED = {"gate_bias": "F", "mag_bias": "F", "r_mag": "F", "decoder_bias": "d"}
_TOPK = {**_LINEAR, "b_dec": "d"}
CLASSES: dict[str, tuple[dict[str, str], bool, ActivationKind | None]] = {
    "AutoEncoder": ({**_LINEAR, "bias": "d"}, True, ActivationKind.relu),
    "AutoEncoderNew": ({**_LINEAR, "decoder.bias": "d"}, False, ActivationKind.relu),
    "GatedAutoEncoder": ({"encoder.weight": "F d", "decoder.weight": "d F", **_GATED}, True, ActivationKind.gated),
    "JumpReluAutoEncoder": ({**_PLAIN, "threshold": "F"}, False, ActivationKind.jumprelu),
    "AutoEncoderTopK": (_TOPK, True, None),
    "BatchTopKSAE": (_TOPK, True, None),
    "MatryoshkaBatchTopKSAE": (_PLAIN, True, None),
}
"""Of each supported `dict_class` the tensors and their axes, whether its decoder bias is subtracted from the input, and
its activation where that does not depend on the file."""
_SITES = {
    "resid_post": Site.resid_post, "resid_pre": Site.resid_pre, "resid_mid": Site.resid_mid, "mlp": Site.mlp_out,
    "att(ention|n)": Site.attn_out,
}  # fmt: skip
"""Sites by what a submodule's name holds."""


@option
class DictionaryLearning(FolderFormat):
    """Loader of dictionary_learning's classes; `ae.pt` is read with torch's restricted unpickler only.

    AutoEncoder and AutoEncoderNew are ReLU SAEs (the latter does not subtract its decoder bias from the input),
    GatedAutoEncoder and JumpReluAutoEncoder what their names say, AutoEncoderTopK a TopK SAE, BatchTopKSAE and
    MatryoshkaBatchTopKSAE JumpReLU SAEs with their stored scalar threshold (-1 = never set: then they only match).
    The library multiplies the activations of gated and JumpReLU dictionaries by decoder norms and divides by them
    before decoding; here activations stay in the units of the stored weights, as in SAELens.
    """

    dialect: ClassVar[str] = "dictionary_learning"
    FILES: ClassVar[tuple[str, ...]] = ("config.json", "ae.pt")

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions, site and layer from `config.json`; `ae.pt` is not opened."""
        config, weights = self.paths(path)
        need_file(weights)
        cfg, trainer = read_json(config), _trainer(config)
        d_model, width = (number(config, cfg, f"trainer.{key}") for key in ("activation_dim", "dict_size"))
        stated = trainer.get("layer")
        known = isinstance(stated, int) and abs(stated) <= MAX_INTEGER
        return SaeHeader(d_model, width, _site(trainer, cfg.get("buffer")), stated if known else None)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder; anything in `ae.pt` but tensors is refused."""
        config, weights = self.paths(path)
        header, trainer, state = self.header(path, layer), _trainer(config), read_state_dict(weights)
        dict_class = trainer["dict_class"]
        layout = CLASSES[dict_class][0]
        need_layout(weights, {n: tuple(t.shape) for n, t in state.items()}, layout, header.d_model, header.width)
        stored, k = _scalar(state, "k"), trainer.get("k")
        k, threshold = k if stored is None else int(stored), _scalar(state, "threshold") or -1.0
        convention = convention_of(weights, dict_class, k, threshold)
        tensors = {name: state[name] for name in layout}
        if convention.activation is ActivationKind.jumprelu:
            tensors.setdefault("threshold", torch.tensor(threshold))
        return build_sae(self.folder_of(path), layer, header, convention.canonical(tensors, weights), convention.how)


def convention_of(where: object, dict_class: str, k: object, threshold: float) -> Convention:
    """What an SAE of this class computes.

    Args:
        k, threshold: what the classes with one of each for all features hold; a threshold <= 0 was never set.
    """
    _, subtracts, kind = CLASSES[dict_class]
    if kind is None and dict_class != "AutoEncoderTopK" and threshold > 0:
        kind = ActivationKind.jumprelu
    if kind is not None:
        return Convention(activation=kind, subtracts_b_dec=subtracts, normalization="none")
    if not isinstance(k, int) or not 1 <= k <= MAX_INTEGER:
        raise UserError(f"{where}: {dict_class} without its number of active features k")
    topk = dict_class == "AutoEncoderTopK"
    return Convention(
        activation=ActivationKind.topk if topk else ActivationKind.batch_topk,
        subtracts_b_dec=subtracts,
        normalization="none",
        k=k,
        rescales_by_decoder_norm=False,
        stored_threshold=threshold if topk and threshold > 0 else None,
    )


def _scalar(state: Mapping[str, Tensor], name: str) -> float | None:
    """A tensor of one finite real number."""
    tensor = state.get(name)
    if tensor is None or tensor.numel() != 1 or tensor.is_complex() or not math.isfinite(value := float(tensor)):
        return None
    return value


def _trainer(config: Path) -> Mapping[str, Any]:
    """The `trainer` entry of `config.json`, of a class that is supported."""
    trainer = read_json(config).get("trainer")
    if not isinstance(trainer, Mapping):
        raise UserError(f"{config}: no `trainer` entry; is this the config of a dictionary_learning run?")
    dict_class = trainer.get("dict_class")
    if not isinstance(dict_class, str) or dict_class not in CLASSES:
        raise UserError(f"{config}: trainer.dict_class={repr(dict_class)[:100]}; supported: {', '.join(CLASSES)}")
    return trainer


def _site(trainer: Mapping[str, Any], buffer: object) -> Site:
    """The site in `submodule_name` (such as resid_post_layer_8); a buffer of a module's *inputs* is none of them."""
    if isinstance(buffer, Mapping) and buffer.get("io", "out") != "out":
        return Site.unknown
    name = str(trainer.get("submodule_name") or "").lower()
    return next((site for pattern, site in _SITES.items() if re.search(pattern, name)), Site.unknown)
