"""Gemma-Scope-shaped SAEs with a planted, drifting permutation: generate them, run a job over them, score the result.

    python -m tests.benchmarks.gemma_scope_scale --layers 26 --width 16384 --d 2304 --out DIR
    python -m tests.benchmarks.gemma_scope_scale --out DIR --compare RECORD
    python -m tests.benchmarks.gemma_scope_scale --out DIR --run RECORD [-- OVERRIDE...]

The last one serves DIR as google/gemma-scope-2b-pt-res from a hub on loopback, runs the command line with
`experiment=gemma_2_2b evaluation=weights_only` over all of its layers, and prints time, peak memory and the scores.

Files have the hub's layout, layer_{L}/width_16k/average_l0_{N}/params.npz with the N of the paper's Table 1: DIR can
be published as google/gemma-scope-2b-pt-res. Every layer is the previous one with its features in another order,
drifted, and with a share of them replaced by new ones; `planted/` keeps the order. At most two layers are in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sae_match import Permutation
from sae_match.saes.formats.gemma_scope import PAPER_L0S_2B_16K

Floats = npt.NDArray[np.float32]
REPLACED = -1
"""Planted partner of a feature that the next layer does not have."""
BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Recipe:
    """What is generated.

    Attributes:
        layers, width, d: number of files, features F, dimensions of the residual stream.
        noise: norm of the Gaussian drift of each unit-norm row, per layer.
        replaced: share of features that are new in each layer.
        seed: of everything.
    """

    layers: int
    width: int
    d: int
    noise: float = 0.5
    replaced: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Layer:
    """Parameters of one layer, encoder directions as rows."""

    decoder: Floats
    encoder: Floats
    b_enc: Floats
    threshold: Floats


def generate(recipe: Recipe, out: Path) -> None:
    """Write all layers below `out`, one after the other, with the planted permutations in `out/planted`."""
    rng = np.random.default_rng(recipe.seed)
    (out / "planted").mkdir(parents=True, exist_ok=True)
    (out / "planted" / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    layer = new_features(recipe.width, recipe.d, rng)
    for number in range(recipe.layers):
        if number:
            layer, partners = next_layer(layer, recipe, rng)
            np.save(_planted_path(out, number - 1), partners)
        write_layer(layer, number, out, rng)


def new_features(n: int, d: int, rng: np.random.Generator) -> Layer:
    """Unit decoder rows, encoder rows near them, biases below zero, and thresholds with a heavy tail."""
    decoder = unit_rows(rng.standard_normal((n, d), dtype=np.float32))
    encoder = decoder * rng.uniform(0.7, 1.3, (n, 1)).astype(np.float32)
    b_enc = -np.abs(rng.standard_normal(n)).astype(np.float32)
    # Log-normal, and one feature in fifty up to ten times higher.
    tail = np.where(rng.random(n) < 0.02, rng.uniform(3, 10, n), 1.0)
    threshold = (5.0 * np.exp(0.3 * rng.standard_normal(n)) * tail).astype(np.float32)
    return Layer(decoder, encoder, b_enc, threshold)


def next_layer(layer: Layer, recipe: Recipe, rng: np.random.Generator) -> tuple[Layer, npt.NDArray[np.int64]]:
    """The following layer, and for each feature of `layer` its place in it (REPLACED where it has none)."""
    order = rng.permutation(recipe.width)
    fresh = rng.permutation(recipe.width)[: round(recipe.replaced * recipe.width)]
    decoder, encoder = layer.decoder[order], layer.encoder[order]
    drift(decoder, recipe.noise, rng)
    decoder = unit_rows(decoder)
    drift(encoder, recipe.noise, rng)
    wobble = np.exp(0.1 * rng.standard_normal(recipe.width)).astype(np.float32)
    b_enc = layer.b_enc[order] + 0.1 * rng.standard_normal(recipe.width).astype(np.float32)
    threshold = layer.threshold[order] * wobble * np.float32(1.03)
    new = new_features(len(fresh), recipe.d, rng)
    decoder[fresh], encoder[fresh], b_enc[fresh], threshold[fresh] = new.decoder, new.encoder, new.b_enc, new.threshold
    partners = np.empty(recipe.width, dtype=np.int64)
    partners[order] = np.arange(recipe.width)
    partners[order[fresh]] = REPLACED
    return Layer(decoder, encoder, b_enc, threshold), partners


def drift(rows: Floats, noise: float, rng: np.random.Generator) -> None:
    """Add noise of expected norm `noise` to each row, in place and a block at a time."""
    scale = np.float32(noise / np.sqrt(rows.shape[1]))
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        block += scale * rng.standard_normal(block.shape, dtype=np.float32)


def unit_rows(rows: Floats) -> Floats:
    """Rows scaled to norm 1, in place."""
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def write_layer(layer: Layer, number: int, out: Path, rng: np.random.Generator) -> Path:
    """Write one `params.npz` (a zip of uncompressed arrays, as on the hub)."""
    l0 = PAPER_L0S_2B_16K[number] if number < len(PAPER_L0S_2B_16K) else 100
    path = out / f"layer_{number}" / "width_16k" / f"average_l0_{l0}" / "params.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        W_enc=np.ascontiguousarray(layer.encoder.T),
        W_dec=layer.decoder,
        b_enc=layer.b_enc,
        b_dec=0.1 * rng.standard_normal(layer.decoder.shape[1], dtype=np.float32),
        threshold=layer.threshold,
    )
    return path


@dataclass(frozen=True)
class Score:
    """How much of one planted permutation a record found.

    Attributes:
        layer: the pair's first layer.
        persisting: features of it that the next layer still has.
        found: those among them whose planted partner is the matched one.
    """

    layer: int
    persisting: int
    found: int

    @property
    def accuracy(self) -> float:
        """Share of persisting features matched to their planted partner."""
        return self.found / self.persisting


def compare(record: Path, generated: Path) -> list[Score]:
    """Score every permutation of a record against the planted ones."""
    scores = []
    for path in sorted((record / "permutations").glob("layer_*_to_*.safetensors")):
        permutation = Permutation.load(path)
        layer = int(permutation.provenance["layer_a"])
        planted = np.load(_planted_path(generated, layer), allow_pickle=False)
        persisting = planted != REPLACED
        found = (permutation.indices.numpy() == planted) & persisting
        scores.append(Score(layer, int(persisting.sum()), int(found.sum())))
    return scores


def run(generated: Path, record: Path, overrides: list[str]) -> int:
    """The command line over `generated`, downloaded from a loopback hub into a cache beside the record.

    Returns:
        The command's exit code.
    """
    from tests.hub_server import Hub

    hub = Hub()
    hub.publish("google/gemma-scope-2b-pt-res", generated)
    recipe = Recipe(**json.loads((generated / "planted" / "recipe.json").read_text()))
    cache = record.with_name(f"{record.name}_cache").absolute()
    environment = {**os.environ, **hub.environment(cache / "hub"), "SAE_MATCH_CACHE": str(cache)}
    command = [
        sys.executable, "-m", "sae_match", "experiment=gemma_2_2b", "evaluation=weights_only", "layers.first=0",
        f"layers.last={recipe.layers - 1}", f"sae.d_model={recipe.d}", "tracking=none",
        f"paths.output_dir={record}", f"hydra.run.dir={record}", *overrides,
    ]  # fmt: skip
    started = time.monotonic()
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    finally:
        hub.stop()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"exit code {code}, {time.monotonic() - started:.0f} s, peak memory {peak:.2f} GiB")
    return code


def report(scores: list[Score]) -> None:
    """Print one line per pair."""
    for score in scores:
        print(f"layer {score.layer:2d}: {score.found} of {score.persisting} persisting features ({score.accuracy:.4f})")


def _planted_path(out: Path, layer: int) -> Path:
    return out / "planted" / f"layer_{layer:02d}_to_{layer + 1:02d}.npy"


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the generated files")
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--width", type=int, default=16384)
    parser.add_argument("--d", type=int, default=2304)
    parser.add_argument("--noise", type=float, default=Recipe.noise)
    parser.add_argument("--replaced", type=float, default=Recipe.replaced)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", type=Path, metavar="RECORD", help="score a record instead of generating")
    parser.add_argument("--run", type=Path, metavar="RECORD", help="run a job over the files instead of generating")
    parser.add_argument("overrides", nargs="*", help="with --run, after --: overrides of the job")
    asked = parser.parse_args()
    if asked.run is not None:
        code = run(asked.out, asked.run, asked.overrides)
        report(compare(asked.run, asked.out))
        return code
    if asked.compare is None:
        shape = asked.layers, asked.width, asked.d
        generate(Recipe(*shape, noise=asked.noise, replaced=asked.replaced, seed=asked.seed), asked.out)
        return 0
    scores = compare(asked.compare, asked.out)
    report(scores)
    return 0 if scores else 1


if __name__ == "__main__":
    sys.exit(main())
