"""Writes `assets/sae_releases.json`, the table of SAELens' registry that `sae_match.saes.releases` reads.

`python -m tests.saes.release_table` after a new version of sae-lens is installed; a test checks that the committed
table is that of the installed version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml

from sae_match.saes.releases import TABLE

NUMBER = r"(layer_?|blocks\.|\bl(?=\d+[ram]_)|L(?=\d+[RAM_]))"
"""What stands before the number of a block."""
L0 = re.compile(r"(?<=average_l0_)\d+")
SITES = {
    "resid_post": "resid_post", "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "mlp_out": "mlp_out",
    "-mlp": "mlp_out", "-att": "attn_out", "attn_out": "attn_out", "hook_z": "attn_out", "LXR": "resid_post",
    "LXM": "mlp_out", "LXA": "attn_out", "transcoder": "transcoder", "clt": "transcoder", "-res": "resid_post",
}  # fmt: skip
"""Sites by what a path, an id or a repository's name holds, the first that fits."""
KEPT = ("normalize_activations", "model_from_pretrained_kwargs")
"""What of `config_overrides` changes what an SAE computes or reads."""
ALWAYS_RESID = ("qwen_scope", "goodfire", "deepseek_r1", "temporal", "llama_scope_r1_distill", "dictionary_learning_1")


def registry() -> dict[str, Any]:
    """The registry of the installed sae-lens."""
    text = resources.files("sae_lens").joinpath("pretrained_saes.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return loaded


def table() -> dict[str, Any]:
    """The whole table as plain values."""
    version = metadata.version("sae-lens")
    return {
        "source": f"pretrained_saes.yaml of sae-lens {version}",
        "releases": {name: release(entry) for name, entry in sorted(registry().items())},
    }


def release(entry: dict[str, Any]) -> dict[str, Any]:
    """One release: what holds for all of its SAEs, and groups of those whose names differ in block and L0 only."""
    repo_id, converter = entry["repo_id"], entry["conversion_func"] or "sae_lens"
    # The registry calls one instruction-tuned set that of the base model; its own loader goes by the repository.
    model = entry["model"] + ("-it" if repo_id == "google/gemma-scope-9b-it-res" else "") * (
        not entry["model"].endswith("-it")
    )
    facts: dict[str, Any] = {"repo_id": repo_id, "converter": converter, "model": model}
    settings = {key: value for key, value in (entry.get("config_overrides") or {}).items() if key in KEPT}
    if converter == "qwen_scope":
        settings["k"] = int(repo_id.rpartition("_")[2])
    if settings:
        facts["settings"] = settings
    named = all(sae.get("neuronpedia") for sae in entry["saes"])
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for sae in entry["saes"]:
        described = describe(sae, converter, repo_id, named)
        block, l0, scale = described.pop("block"), described.pop("l0"), described.pop("scale")
        group = groups.setdefault(tuple(described.values()), described | {"l0s": {}, "scales": {}})
        group["l0s"].setdefault(block, []).append(l0)
        if scale is not None:
            group["scales"][block] = scale
    return facts | {"saes": [compact(group) for group in groups.values()]}


def describe(sae: dict[str, Any], converter: str, repo_id: str, named: bool) -> dict[str, Any]:
    """Id, path and name at Neuronpedia as patterns, with what fills them."""
    name, path = str(sae["id"]), str(sae["path"])
    found = re.search(NUMBER + r"(\d+)", name) or re.search(NUMBER + r"(\d+)", path)
    block = None if found is None else int(found[2])
    l0 = L0.search(path)
    neuronpedia = sae["neuronpedia"] if named else ""
    if converter == "mntss_clt_layer_transcoder" or path.startswith(f"{block}-"):
        path = "{layer}" + path.removeprefix(str(block))
    patterns = {
        key: pattern(text, block, None if l0 is None else l0[0])
        for key, text in (("id", name), ("path", path), ("neuronpedia", neuronpedia))
    }
    where = f"{name} {path}" if converter in ("sae_lens", "gemma_3") else repo_id
    site = next((site for mark, site in SITES.items() if mark in where), None)
    if converter in ALWAYS_RESID:
        site = "resid_post"
    if converter == "connor_rob_hook_z":
        site = "attn_out"
    if path.startswith("embedding/"):
        site = "embedding"
    assert site is not None, (repo_id, sae)
    # Llama Scope's own files hold the factor.
    scale = None if converter == "llama_scope" else sae.get("norm_scaling_factor")
    return patterns | {"site": site, "block": block, "l0": None if l0 is None else int(l0[0]), "scale": scale}


def pattern(text: str, block: int | None, l0: str | None) -> str:
    """The text with {layer} and {l0} in place of a block's number and an L0."""
    if block is not None:
        text = re.sub(NUMBER + rf"{block}(?!\d)", r"\1{layer}", text)
        text = re.sub(rf"/{block}-", "/{layer}-", text, count=1) if "/" in text else text
    return text if l0 is None else re.sub(rf"(?<=average_l0_){l0}$", "{l0}", text)


def compact(group: dict[str, Any]) -> dict[str, Any]:
    """A group without what is empty or said twice, its blocks as ranges where no L0 goes with them."""
    l0s, scales = group.pop("l0s"), group.pop("scales")
    kept = {key: value for key, value in group.items() if value and not (key == "path" and value == group["id"])}
    if None in l0s and l0s[None] == [None]:
        return kept
    if any(l0 is not None for found in l0s.values() for l0 in found):
        kept["l0s"] = {str(block): sorted(found) for block, found in sorted(l0s.items(), key=lambda item: item[0] or 0)}
    else:
        kept["layers"] = ranges(sorted(l0s))
    if scales:
        kept["scales"] = {str(block): scale for block, scale in sorted(scales.items())}
    return kept


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers such as 0-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def written(value: dict[str, Any]) -> str:
    """The table as JSON, one group a line."""

    def lines() -> Iterator[str]:
        for name, facts in value["releases"].items():
            head = json.dumps({key: own for key, own in facts.items() if key != "saes"}, ensure_ascii=False)
            groups = ",\n".join(json.dumps(group, separators=(",", ":")) for group in facts["saes"])
            yield f'{json.dumps(name)}: {head[:-1]}, "saes": [\n{groups}]}}'

    body = ",\n".join(lines())
    return f'{{"source": {json.dumps(value["source"])}, "releases": {{\n{body}\n}}}}\n'


if __name__ == "__main__":
    place = Path(str(resources.files("sae_match").joinpath(TABLE)))
    place.write_text(written(table()), encoding="utf-8")
    print(f"{place}: {place.stat().st_size} bytes")
