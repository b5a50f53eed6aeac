"""Inner products by torch: float32, or half-precision factors with a bound on what they leave out."""

from __future__ import annotations

import timeit
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.assignment.arrays import Float32, Int64
from sae_match.assignment.products import Product
from sae_match.errors import UserError


class Precision(StrEnum):
    """Precision of the factors of an inner product; sums are float32 in any case."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


HALF = {"cpu": (Precision.bfloat16,), "cuda": (Precision.float16, Precision.bfloat16)}
"""Half precisions of a device, the first one to be preferred: a GPU is as fast with float16, which rounds less."""
ROUNDING_ROWS = 1024
"""Rows whose rounding errors are measured together."""
SMALLEST = 4096
"""Rows and columns below which a choice of precision would take longer than it saves."""
TIMED_ROWS, TIMED_COLUMNS, REPEATS = 256, 2048, 3
FASTER = 0.8
"""Share of float32's time up to which half precision is taken: its looser bound leaves more pairs to price exactly."""


class TorchProduct(Product):
    """float32 products on a device.

    Args:
        left, right: [n, D] and [m, D] float32.
        device: where they are computed.
    """

    def __init__(self, left: Float32, right: Float32, device: str) -> None:
        super().__init__(left, right)
        self.device = device
        self._columns = torch.from_numpy(right).to(device).T

    def multiply(self, rows: Int64 | slice) -> Float32:
        """[r, m] inner products of some rows, as a new array."""
        left = torch.from_numpy(self.left[rows]).to(self.device)
        product: Float32 = torch.mm(left, self._columns).cpu().numpy()
        return product

    def describe_error(self, off: float, allowed: float) -> str:
        """What to do about a product that is off by more than is allowed."""
        return (
            f"the float32 matrix product on {self.device} is off by {off:.1e}, more than float32 allows "
            f"({allowed:.1e}): a reduced-precision mode is on, or values overflow. "
            "Switch it off (torch.set_float32_matmul_precision('highest')) or set device=cpu."
        )


class BFloat16Product(TorchProduct):
    """float32 products on a CPU that may round their factors to bfloat16, where it has instructions for that.

    With a = a_h + a_l and b = b_h + b_l, |<a, b> - <a_h, b_h>| <= |a_l| |b| + |a_h| |b_l|; the norms of what rounding
    leaves out, a_l and b_l, are measured. The bound holds for a CPU that multiplies the factors as they are, too.

    Args:
        left, right: [n, D] and [m, D] float32.
    """

    half = True

    def __init__(self, left: Float32, right: Float32) -> None:
        super().__init__(left, right, "cpu")
        # The instructions multiply two pairs at a time and round once or twice.
        self.gamma = half_bound(left, right, torch.bfloat16, 2.0**-23)

    def multiply(self, rows: Int64 | slice) -> Float32:
        """[r, m] inner products of some rows, as a new array."""
        mode = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before = mode.fp32_precision
        mode.fp32_precision = "bf16"
        try:
            return super().multiply(rows)
        finally:
            mode.fp32_precision = before

    def describe_error(self, off: float, allowed: float) -> str:
        """What to do about a product that is off by more than is allowed."""
        return describe_half(off, allowed, self.device)


class HalfProduct(Product):
    """Products on a GPU of factors that are rounded to half precision, summed in float32; the bound is the same.

    Args:
        left, right: [n, D] and [m, D] float32.
        device: where they are computed.
        dtype: float16 or bfloat16.
    """

    half = True

    def __init__(self, left: Float32, right: Float32, device: str, dtype: torch.dtype) -> None:
        super().__init__(left, right)
        self.device, self.dtype = device, dtype
        # Tensor cores align a handful of products and truncate them (Fasi, Higham, Mikaitis and Pranesh, Numerical
        # behavior of NVIDIA tensor cores, 2021).
        self.gamma = half_bound(left, right, dtype, 2.0**-22)
        columns, self._column_scale = scaled(torch.from_numpy(right).to(device))
        self._columns = columns.to(dtype).T

    def multiply(self, rows: Int64 | slice) -> Float32:
        """[r, m] inner products of some rows, as a new array."""
        factors, scale = scaled(torch.from_numpy(self.left[rows]).to(self.device))
        found = torch.mm(factors.to(self.dtype), self._columns, out_dtype=torch.float32)
        product: Float32 = found.mul_(scale[:, None]).mul_(self._column_scale).cpu().numpy()
        return product

    def describe_error(self, off: float, allowed: float) -> str:
        """What to do about a product that is off by more than is allowed."""
        return describe_half(off, allowed, self.device)


def half_bound(left: Float32, right: Float32, dtype: torch.dtype, addition: float) -> float:
    """Error of an inner product of rounded rows a and b, relative to |a| |b|.

    Args:
        left, right: [n, D] and [m, D].
        dtype: what they are rounded to.
        addition: relative error of one addition.
    """
    rows, columns = largest_rounding(left, dtype), largest_rounding(right, dtype)
    return 1.002 * (rows + (1 + rows) * columns + (1 + rows) * (1 + columns) * left.shape[1] * addition)


def largest_rounding(rows: Float32, dtype: torch.dtype) -> float:
    """Largest |row - rounded row| / |row|, up to a relative error of 2^-11 from float32 sums."""
    largest = 0.0
    for part in torch.from_numpy(rows).split(ROUNDING_ROWS):
        plain, _ = scaled(part)
        norm = torch.linalg.vector_norm(plain, dim=1).clamp(
            min=1.0
        )  # that of a row of zeros is 0, of others at least 1
        largest = max(largest, float((torch.linalg.vector_norm(plain - plain.to(dtype).float(), dim=1) / norm).max()))
    return largest


def scaled(rows: Float[Tensor, "r D"]) -> tuple[Float[Tensor, "r D"], Float[Tensor, " r"]]:
    """Rows divided by a power of two each, so that the largest entry lies in 1..2 and float16 holds it; the powers."""
    top = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1)
    scale = torch.exp2(torch.frexp(top).exponent - 1.0)
    return rows / scale[:, None], scale


def describe_half(off: float, allowed: float, device: str) -> str:
    """What to do about a half-precision product that is off by more than is allowed."""
    return (
        f"the half-precision matrix product on {device} is off by {off:.1e}, more than its bound ({allowed:.1e}): "
        "set solver.product=float32"
    )


def make_product(left: Float32, right: Float32, *, device: str, precision: Precision) -> Product:
    """The product of two sides.

    Args:
        left, right: [n, D] and [m, D] float32.
        device: where it is computed.
        precision: of the factors; `auto` times what there is on a small block.
    """
    if precision is Precision.auto:
        precision, kind = Precision.float32, torch.device(device).type
        if kind in HALF and min(len(left), len(right)) >= SMALLEST and (kind != "cpu" or cpu_rounds()):
            other, sides = HALF[kind][0], (left[:TIMED_ROWS], right[:TIMED_COLUMNS])
            plain, half = (seconds(make_product(*sides, device=device, precision=p)) for p in (precision, other))
            precision = other if half <= FASTER * plain else precision
    if precision is Precision.float32:
        return TorchProduct(left, right, device)
    if torch.device(device).type == "cpu":
        return BFloat16Product(left, right)
    return HalfProduct(left, right, device, getattr(torch, precision.value))


def check_precision(precision: Precision, device: str) -> None:
    """Refuse a precision that a device has no products of.

    Raises:
        UserError: it has none.
    """
    kind = torch.device(device).type
    known = {Precision.auto, Precision.float32, *HALF.get(kind, ())}
    if precision not in known:
        raise UserError(f"solver.product={precision}: device={kind} knows only {', '.join(sorted(known))}")


def cpu_rounds() -> bool:
    """Whether the CPU's float32 product rounds its factors to bfloat16 where it may: it does where that is faster."""
    ones = np.ones((256, 512), np.float32)
    # 1 + 2^-12 is 1 in bfloat16.
    return bool(BFloat16Product(ones * np.float32(1 + 2.0**-12), ones).multiply(slice(None))[0, 0] == 512)


def seconds(product: Product) -> float:
    """The least of a few times that the whole product takes, with its way to the CPU."""
    return min(timeit.repeat(lambda: product.multiply(slice(None)), repeat=REPEATS, number=1))
