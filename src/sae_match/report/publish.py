"""What a job's record gives others: its permutations in one file with a model card, and its flow graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sae_match.files import write_text
from sae_match.flows.export import write_graph
from sae_match.flows.graph import Flow
from sae_match.matching.permutation import Permutation
from sae_match.matching.published import PERMUTATIONS as FILE
from sae_match.matching.published import save_permutations

from ..errors import UserError
from ..record.contents import FLOW, FLOW_EVENTS, PERMUTATIONS
from .records import Record
from .tables import format_value, markdown_table

CARD = """---
library_name: sae_match
tags:
- sparse-autoencoder
- interpretability
- sae-match
---

# Matched features of {sae}, layers {first} to {last}

`{file}` holds {count} permutations: feature i of one layer corresponds to feature `permutation[i]` of the next
(-1 = none). They were found by SAE Match (Balagansky et al., ICLR 2025, arXiv 2410.07656) with the settings below.

{settings}
```python
from sae_match import load_permutations

permutations = load_permutations("DIR or OWNER/NAME", saes=saes)  # saes: SAEs by layer, checked to be those matched
permutations[{first}, {second}].indices
```

{pairs}
A gap of 0 is a proof that no one-to-one matching has a lower cost. The file's header has the content hashes of the
SAEs, the settings, cost, bound and solver of every permutation.
"""
SHOWN = ("sae", "model", "metric", "folding", "folding_scale", "solver", "dataset", "seed")


def one_record(records: Sequence[Record], file: str) -> Record:
    """The only record that has a file or folder.

    Raises:
        UserError: none has, or several have it.
    """
    found = [record for record in records if record.state == "done" and (record.path / file).exists()]
    if len(found) != 1:
        names = ", ".join(record.name for record in found[:5]) or "none"
        raise UserError(f"give the directory of one finished job with {file}; there: {names}")
    return found[0]


def write_flow_graph(records: Sequence[Record], path: Path) -> None:
    """Write the flow graph of the one job that has one as GraphML or JSON."""
    write_graph(Flow.load(one_record(records, FLOW_EVENTS).path / FLOW), path)


def publish(records: Sequence[Record], folder: Path) -> None:
    """Write what one would upload to the hub: permutations.safetensors, README.md and, where there is one, flow/.

    Raises:
        UserError: not one finished job with permutations between layers, or a damaged one.
    """
    record = one_record(records, PERMUTATIONS)
    found = [Permutation.load(path) for path in sorted((record.path / PERMUTATIONS).glob("*.safetensors"))]
    permutations = {(int(one.provenance["layer_a"]), int(one.provenance["layer_b"])): one for one in found}
    if not permutations:
        raise UserError(f"{record.path}: no permutations to publish")
    save_permutations(folder / FILE, permutations)
    if (record.path / FLOW_EVENTS).is_file():
        Flow.load(record.path / FLOW).save(folder / FLOW)
    write_text(folder / "README.md", _card(record, permutations))


def _card(record: Record, permutations: dict[tuple[int, int], Permutation]) -> str:
    ends = sorted(permutations)
    assert record.pairs is not None  # of a finished job
    values = record.pairs.set_index(["layer", "layer_to", "variant", "metric"])["value"].to_dict()
    measured = set(record.pairs["metric"])
    metrics = [name for name in ("matching_score", "weight_mse/W_dec", "gap") if name in measured]
    rows = [
        [f"{a} → {b}", f"{len(permutations[a, b].matched)} of {permutations[a, b].n_a}"]
        + [format_value(values.get((a, b, "matched", name), values.get((a, b, "exact", name)))) for name in metrics]
        for a, b in ends
    ]
    header = ["layers", "features matched", *metrics]
    settings = [["matching", str(record.config.get("matching", {}).get("name"))]]
    settings += [[name, str(record.factors[name])] for name in SHOWN if record.factors.get(name) is not None]
    sae = record.config.get("sae", {})
    settings += [[f"sae.{key}", str(sae[key])] for key in ("repo_id", "revision", "l0", "width") if sae.get(key)]
    return CARD.format(
        sae=record.factors.get("sae", "SAEs"), first=ends[0][0], second=ends[0][1], last=max(b for _, b in ends),
        count=len(ends), file=FILE, settings=markdown_table(["setting", "value"], settings),
        pairs=markdown_table(header, rows, header[1:]),
    )  # fmt: skip
