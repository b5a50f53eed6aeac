"""A partial matching of the features of one SAE to those of another, and what produced it."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_match.arrays import Array, as_tensor
from sae_match.errors import UserError
from sae_match.files import atomic_path

Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]

UNMATCHED = -1
"""Index that marks a feature without a partner."""


@dataclass(frozen=True, eq=False)
class Permutation:
    """Feature i of SAE A corresponds to feature `indices[i]` of SAE B (one-to-one; -1 = unmatched).

    Args:
        indices: [F_a], int64, values in 0..width_b-1 without repetition, or -1.
        width_b: number of features of B; None = F_a.
        provenance: JSON-able description of what produced it (SAE hashes, metric, folding, solver, objective...).
        many_to_one: a feature of B may be the partner of several features of A.

    Raises:
        UserError: wrong dtype or shape, an index out of range, or a feature of B used twice.
    """

    indices: Int[Tensor, " F_a"]
    width_b: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    many_to_one: bool = False

    def __repr__(self) -> str:
        matched = "" if len(self.matched) == self.n_a else f", {len(self.matched)} matched"
        return f"Permutation({self.n_a} -> {self.n_b} features{matched})"

    def __post_init__(self) -> None:
        indices = self.indices
        if indices.ndim != 1 or indices.dtype != torch.int64:
            raise UserError(f"a permutation is int64 [F_a], got {indices.dtype} {tuple(indices.shape)}")
        if self.width_b is None:
            object.__setattr__(self, "width_b", len(indices))
        used = indices[indices != UNMATCHED]
        if len(used) and (int(used.min()) < 0 or int(used.max()) >= self.n_b):
            raise UserError(f"permutation indices must be -1 or in 0..{self.n_b - 1}")
        if not self.many_to_one and len(used.unique()) != len(used):
            raise UserError("a permutation uses a feature of B more than once")

    @property
    def n_a(self) -> int:
        """Number of features of A."""
        return len(self.indices)

    @property
    def n_b(self) -> int:
        """Number of features of B."""
        return self.n_a if self.width_b is None else self.width_b

    @property
    def matched(self) -> Int[Tensor, " M"]:
        """Features of A that have a partner, ascending."""
        return (self.indices != UNMATCHED).nonzero().flatten()

    @classmethod
    def identity(cls, n_a: int, n_b: int | None = None) -> Permutation:
        """The vanilla control: feature i to feature i, as far as both SAEs have one."""
        n_b = n_a if n_b is None else n_b
        indices = torch.arange(n_a)
        return cls(torch.where(indices < n_b, indices, UNMATCHED), n_b, {"solver": "vanilla"})

    @classmethod
    def random(cls, n_a: int, n_b: int | None = None, *, seed: int = 0) -> Permutation:
        """The random control: a uniformly drawn one-to-one matching of min(n_a, n_b) features."""
        n_b = n_a if n_b is None else n_b
        # Its own generator on the CPU: the same draw on every device and whatever ran before.
        order = torch.randperm(max(n_a, n_b), generator=torch.Generator().manual_seed(seed))[:n_a]
        return cls(torch.where(order < n_b, order, UNMATCHED), n_b, {"solver": "random", "seed": seed})

    @classmethod
    def of_pairs(cls, rows: Ints, columns: Ints, n_a: int, n_b: int) -> Permutation:
        """Feature rows[k] of A to feature columns[k] of B; the others stay unmatched."""
        indices = np.full(n_a, UNMATCHED, np.int64)
        indices[rows] = columns
        return cls(torch.from_numpy(indices), n_b)

    @classmethod
    def of_narrower(cls, partner: Ints, n_a: int, n_b: int) -> Permutation:
        """The matching from the partner of every feature of the narrower side (A's, if both are equally wide)."""
        matched = np.flatnonzero(partner != UNMATCHED)
        rows, columns = (matched, partner[matched]) if n_a <= n_b else (partner[matched], matched)
        return cls.of_pairs(rows, columns, n_a, n_b)

    def compose(self, after: Permutation) -> Permutation:
        """This A -> B followed by `after`: B -> C, as one A -> C (section 3.2 of the paper). Unmatched stays unmatched.

        Raises:
            UserError: if `after` does not start at as many features as this one ends at.
        """
        if after.n_a != self.n_b:
            raise UserError(f"cannot compose: the first ends at {self.n_b} features, the second starts at {after.n_a}")
        through = after.indices[self.indices.clamp(min=0)]
        indices = torch.where(self.indices == UNMATCHED, self.indices, through)
        many_to_one = self.many_to_one or after.many_to_one
        return Permutation(indices, after.n_b, {"composed": [self.provenance, after.provenance]}, many_to_one)

    def inverse(self) -> Permutation:
        """The matching read from B to A.

        Raises:
            UserError: a many-to-one matching, which has no inverse.
        """
        if self.many_to_one:
            raise UserError("a many-to-one matching has no inverse: match the SAEs the other way round instead")
        indices = torch.full((self.n_b,), UNMATCHED, dtype=torch.int64)
        indices[self.indices[self.matched]] = self.matched
        return Permutation(indices, self.n_a, {"inverse_of": self.provenance})

    def apply(self, f: Float[Array, "*batch F_a"]) -> Float[Tensor, "*batch F_b"]:
        """Activations of A's features, placed at their partners' positions; B's unmatched features get 0.

        Where several features of A share a partner, their activations add up.
        """
        f = as_tensor(f)
        matched = self.matched.to(f.device)
        partners = self.indices.to(f.device)[matched]
        out = f.new_zeros((*f.shape[:-1], self.n_b))
        if self.many_to_one:
            return out.index_add_(-1, partners, f[..., matched])
        out[..., partners] = f[..., matched]
        return out

    def embedded(self, kept_a: Int[Tensor, " F_a"], kept_b: Int[Tensor, " F_b"], n_a: int, n_b: int) -> Permutation:
        """This matching between parts of two SAEs as one between the whole SAEs; the other features are unmatched.

        Args:
            kept_a, kept_b: which features of the whole SAEs the parts consist of.
            n_a, n_b: widths of the whole SAEs.
        """
        indices = torch.full((n_a,), UNMATCHED, dtype=torch.int64)
        indices[kept_a[self.matched]] = kept_b[self.indices[self.matched]]
        return Permutation(indices, n_b, self.provenance, self.many_to_one)

    def save(self, path: Path | str) -> None:
        """Write to `path` as safetensors: tensor `permutation`, provenance as JSON in the header; atomic.

        Equal permutations with equal provenance are equal files.
        """
        metadata = {
            "width_b": str(self.n_b),
            "many_to_one": json.dumps(self.many_to_one),
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(_serialized(self.indices, metadata))

    @classmethod
    def load(cls, path: Path | str) -> Permutation:
        """Read a file written by `save`.

        Raises:
            UserError: missing or corrupt file.
        """
        if not Path(path).is_file():
            raise UserError(f"permutation file not found: {path}")
        try:
            with safe_open(Path(path), framework="pt") as file:
                metadata = file.metadata() or {}
                indices = file.get_tensor("permutation")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a permutation file ({error})") from error
        width_b = int(metadata.get("width_b", len(indices)))
        many_to_one = metadata.get("many_to_one") == "true"
        return cls(indices, width_b, json.loads(metadata.get("provenance", "{}")), many_to_one)


def _serialized(indices: Int[Tensor, " F_a"], metadata: dict[str, str]) -> bytes:
    """A safetensors file; the library's own writer orders metadata anew each time."""
    data = indices.cpu().contiguous().numpy().astype("<i8").tobytes()
    tensor = {"dtype": "I64", "shape": list(indices.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": metadata, "permutation": tensor}, sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # safetensors wants aligned data
    return struct.pack("<Q", len(header)) + header + data
