"""Small SAEs written exactly as each checkpoint dialect lays its files out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, K = 8, 24, 5


def random_tensors(seed: int = 0, d: int = D, width: int = F) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec (rows of norm 0.5 to 2), b_dec and threshold, each of full size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    norms = 0.5 + 1.5 * torch.rand(width, 1, generator=generator)
    return {
        "W_enc": normal(d, width),
        "b_enc": 0.3 * normal(width),
        "W_dec": norms * torch.nn.functional.normalize(normal(width, d), dim=1),
        "b_dec": 0.5 * normal(d),
        "threshold": 0.3 + torch.rand(width, generator=generator),
    }


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    return path


def write_gemma_scope(root: Path, layer: int = 3, l0: int = 59, seed: int = 0, **changes: Any) -> Path:
    """layer_3/width_16k/average_l0_59/params.npz."""
    path = root / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}" / "params.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: t.numpy() for name, t in random_tensors(seed).items()} | changes
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path


def write_gemma_scope_2(root: Path, layer: int = 3, site: str = "resid_post_all", config: bool = True) -> Path:
    """resid_post_all/layer_3_width_16k_l0_small/{config.json, params.safetensors}."""
    folder = root / site / f"layer_{layer}_width_16k_l0_small"
    tensors = {name.lower(): t for name, t in random_tensors(layer).items()}
    if "affine" in site:
        tensors["affine_skip_connection"] = torch.eye(D)
    if config:
        hook = f"model.layers.{layer}.output"
        facts = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "hf_hook_point_in": hook}
        write_json(folder / "config.json", facts)
    return write_tensors(folder / "params.safetensors", tensors)


def write_llama_scope(root: Path, layer: int = 3, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Llama3_1-8B-Base-L3R-8x/{hyperparams.json, checkpoints/final.safetensors}; returns the folder."""
    folder, t = root / f"Llama3_1-8B-Base-L{layer}R-8x", random_tensors(layer)
    hook = f"blocks.{layer}.hook_resid_post"
    hyperparams = {
        "d_model": D, "d_sae": F, "act_fn": "jumprelu", "jump_relu_threshold": 0.4, "top_k": 50,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 2.5, "out": 2.5},
        "sparsity_include_decoder_norm": True, "apply_decoder_bias_to_pre_encoder": False,
        "hook_point_in": hook, "hook_point_out": hook,
    }  # fmt: skip
    write_json(folder / "hyperparams.json", hyperparams | changes)
    weights = {
        "encoder.weight": t["W_enc"].T,
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T,
        "decoder.bias": t["b_dec"],
    }
    write_tensors(folder / "checkpoints" / "final.safetensors", {name: w.to(dtype) for name, w in weights.items()})
    return folder


def write_saelens(folder: Path, cfg: dict[str, Any], seed: int = 0, **changes: Tensor | None) -> Path:
    """{cfg.json, sae_weights.safetensors} with the parameters of the architecture in `cfg`; returns the folder."""
    tensors: dict[str, Any] = random_tensors(seed)
    threshold = tensors.pop("threshold")
    if cfg.get("architecture") == "jumprelu":
        tensors["threshold"] = threshold
    if cfg.get("architecture") == "gated":
        del tensors["b_enc"]
        generator = torch.Generator().manual_seed(seed + 1)
        for name in ("b_gate", "b_mag", "r_mag"):
            tensors[name] = 0.5 * torch.randn(F, generator=generator)
    tensors |= changes
    write_json(folder / "cfg.json", {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", **cfg})
    write_tensors(folder / "sae_weights.safetensors", {n: t for n, t in tensors.items() if t is not None})
    return folder


def write_sparsify(root: Path, hookpoint: str = "layers.3", **changes: Any) -> Path:
    """layers.3/{cfg.json, sae.safetensors}; returns the folder."""
    folder, t = root / hookpoint, random_tensors()
    cfg = {
        "activation": "topk", "expansion_factor": F // D, "normalize_decoder": True, "num_latents": 0, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
    }  # fmt: skip
    write_json(folder / "cfg.json", cfg | changes)
    tensors = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    if changes.get("skip_connection"):
        tensors["W_skip"] = torch.eye(D)
    write_tensors(folder / "sae.safetensors", tensors)
    return folder


def dictionary_state(dict_class: str, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a dictionary_learning class."""
    t = random_tensors(seed)
    linear = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T}
    scalars = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.7)}
    plain = {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    gated = {name: 0.5 * torch.randn(F, generator=torch.Generator().manual_seed(7 + i))
             for i, name in enumerate(("gate_bias", "mag_bias", "r_mag"))}  # fmt: skip
    return {
        "AutoEncoder": linear | {"bias": t["b_dec"]},
        "AutoEncoderNew": linear | {"decoder.bias": t["b_dec"]},
        "GatedAutoEncoder": {n: linear[n] for n in ("encoder.weight", "decoder.weight")}
        | {"decoder_bias": t["b_dec"]}
        | gated,
        "JumpReluAutoEncoder": t,
        "AutoEncoderTopK": linear | {"b_dec": t["b_dec"]} | scalars,
        "BatchTopKSAE": linear | {"b_dec": t["b_dec"]} | scalars,
        "MatryoshkaBatchTopKSAE": plain | scalars | {"group_sizes": torch.tensor([8, 16])},
    }[dict_class]


def write_dictionary(folder: Path, dict_class: str, layer: int = 3, seed: int = 0, **changes: Any) -> Path:
    """{config.json, ae.pt}; returns the folder."""
    trainer = {
        "trainer_class": "Trainer", "dict_class": dict_class, "activation_dim": D, "dict_size": F, "layer": layer,
        "lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": f"resid_post_layer_{layer}", "k": K,
    }  # fmt: skip
    write_json(folder / "config.json", {"trainer": trainer | changes, "buffer": {"ctx_len": 128, "io": "out"}})
    torch.save(dictionary_state(dict_class, seed), folder / "ae.pt")
    return folder


def write_state_dict(path: Path, names: dict[str, str], turned: bool = True, width: int = F) -> Path:
    """One file of four tensors under these names, matrices [out, in] or not; safetensors or a state dict by suffix."""
    t = random_tensors(width=width)
    tensors = {
        name: t[key].T.contiguous() if turned and key.startswith("W_") else t[key] for key, name in names.items()
    }
    if path.suffix == ".safetensors":
        return write_tensors(path, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return path


def write_llama_scope_r1(folder: Path, layer: int = 3, norm: float | None = None, **changes: Any) -> Path:
    """{config.json, sae_weights.safetensors}; returns the folder.

    Args:
        norm: average activation norm that the weights' file holds.
    """
    t, hook = random_tensors(layer), f"blocks.{layer}.hook_resid_post"
    cfg = {
        "sae_type": "sae", "d_model": D, "expansion_factor": F // D, "use_decoder_bias": True, "act_fn": "jumprelu",
        "apply_decoder_bias_to_pre_encoder": False, "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True, "hook_point_in": hook, "hook_point_out": hook, "use_glu_encoder": False,
    }  # fmt: skip
    write_json(folder / "config.json", cfg | changes)
    weights = {
        "encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T,
        "decoder.bias": t["b_dec"], "log_jumprelu_threshold": t["threshold"].log(),
    }  # fmt: skip
    if norm is not None:
        weights[f"dataset_average_activation_norm.{hook}"] = torch.tensor(norm)
    write_tensors(folder / "sae_weights.safetensors", weights)
    return folder


def write_cross_layer(root: Path, layer: int = 3, written: int = 4, threshold: bool = False) -> Path:
    """W_enc_3.safetensors and W_dec_3.safetensors, of which the second has one matrix per layer that is written to."""
    t = random_tensors(layer)
    tensors = {f"W_enc_{layer}": t["W_enc"].T, f"b_enc_{layer}": t["b_enc"], f"b_dec_{layer}": t["b_dec"]}
    if threshold:
        tensors[f"threshold_{layer}"] = t["threshold"]
    decoder = torch.randn(F, written, D, generator=torch.Generator().manual_seed(layer + 1))
    write_tensors(root / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": decoder})
    return write_tensors(root / f"W_enc_{layer}.safetensors", tensors)


def write_temporal(folder: Path, tied: bool = True, **changes: Any) -> Path:
    """{conf.yaml, latest_ckpt.safetensors} without attention layers; returns the folder."""
    t = random_tensors()
    sae = {
        "exp_factor": F / D, "n_heads": 1, "n_attn_layers": 0, "bottleneck_factor": 1, "sae_diff_type": "topk",
        "kval_topk": K, "tied_weights": tied, "scaling_factor": 0.25,
    }  # fmt: skip
    # JSON is YAML.
    write_json(folder / "conf.yaml", {"llm": {"dimin": D}, "sae": sae | changes, "data": {"dtype": "float32"}})
    tensors = {"D": t["W_dec"], "b": t["b_dec"]} | ({} if tied else {"E": t["W_enc"]})
    write_tensors(folder / "latest_ckpt.safetensors", tensors)
    return folder
