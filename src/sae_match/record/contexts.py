"""contexts.safetensors: the text around each feature's largest activations, and how its activations are distributed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from safetensors import safe_open
from safetensors.numpy import save_file

from sae_match.files import atomic_path, reading

CONTEXTS = "contexts.safetensors"


@dataclass(frozen=True)
class LayerContexts:
    """Of one layer, per feature: its largest activations in the text, the largest first.

    Attributes:
        window, position: where, -1 where there is none.
        value: activations; 0 where there is none.
        share: activations around the place, which is in the middle, in 255ths of the feature's largest one.
        histogram: tokens per equally wide bin of the activation, from 0 to the largest one; 0 is not counted.
    """

    window: Int32[np.ndarray, "F k"]
    position: Int32[np.ndarray, "F k"]
    value: Float32[np.ndarray, "F k"]
    share: UInt8[np.ndarray, "F k context"]
    histogram: Int32[np.ndarray, "F bins"]


FIELDS = tuple(LayerContexts.__dataclass_fields__)


@dataclass(frozen=True)
class TextContexts:
    """Contexts by layer, and the text that they are taken from.

    Attributes:
        ids: rows of `texts`, the text of every token.
    """

    layers: Mapping[int, LayerContexts]
    ids: Int32[np.ndarray, "windows tokens"]
    texts: Sequence[str]


def write_contexts(path: Path, found: TextContexts) -> None:
    """Write the file, atomically."""
    arrays = {f"{layer}.{name}": getattr(of, name) for layer, of in found.layers.items() for name in FIELDS}
    with atomic_path(path) as temporary:
        save_file({**arrays, "ids": found.ids}, temporary, metadata={"texts": json.dumps([*found.texts])})


def read_contexts(path: Path) -> TextContexts:
    """Read the file.

    Raises:
        UserError: it is damaged, or its arrays do not fit each other.
    """
    with reading(path, "file of contexts"):
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = json.loads(file.metadata()["texts"])
        ids = arrays.pop("ids")
        names = sorted({int(name.partition(".")[0]) for name in arrays})
        layers = {layer: LayerContexts(*(arrays.pop(f"{layer}.{name}") for name in FIELDS)) for layer in names}
        _check(ids, 0, len(texts))
        for of in layers.values():
            for index, size in zip((of.window, of.position), ids.shape, strict=True):
                _check(index, -1, size)
            if of.value.shape != of.window.shape or of.share.shape[:2] != of.window.shape or arrays:
                raise ValueError("arrays of different sizes")
    return TextContexts(layers, ids, [str(text) for text in texts])


def _check(index: np.ndarray, low: int, size: int) -> None:
    if index.ndim != 2 or (index.size and not low <= index.min() <= index.max() < size):
        raise ValueError(f"indices outside {low}..{size - 1}")
