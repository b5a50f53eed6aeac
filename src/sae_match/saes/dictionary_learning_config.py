"""The `config.json` of a dictionary_learning dictionary, and the state-dict keys of each of its classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_match.config.sae_schema import Site
from sae_match.errors import UserError
from sae_match.saes.tensor_files import MOST, number, read_json


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
