"""Published SAEs by the names of SAELens' registry: release and id to repository, path, converter, model and site.

The table is made from the registry by `python -m tests.saes.release_table`; sae-lens is not needed to read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from importlib import resources
from typing import Any

from sae_match.errors import UserError
from sae_match.saes.site import Site

TABLE = "assets/sae_releases.json"
L0 = "{l0}"


@dataclass(frozen=True)
class PublishedSae:
    """One SAE of the registry.

    Attributes:
        id: its name within the release.
        path: its file or folder inside the repository.
        site: what it reads.
        block: 0-based block whose hook it reads, None for embeddings; an SAE of `resid_pre` of block t+1 is one of the
            output of block t.
        l0: the N of average_l0_N in its path.
        scale: what inputs are multiplied by where they are normalized by `expected_average_only_in`.
        neuronpedia: MODEL/SOURCE at neuronpedia.org.
    """

    id: str
    path: str
    site: Site
    block: int | None = None
    l0: int | None = None
    scale: float | None = None
    neuronpedia: str | None = None

    @property
    def layer(self) -> int | None:
        """The layer of a job that this SAE is of: the block whose output it reads, else the block that it is in; None
        for embeddings and the input of block 0."""
        if self.site is not Site.resid_pre:
            return self.block
        return self.block - 1 if self.block else None


@dataclass(frozen=True)
class PublishedRelease:
    """A release: SAEs of one model and training, in one repository.

    Attributes:
        converter: what SAELens calls the layout of its files.
        model: the language model that they read, as the registry names it.
        settings: what only the registry says of the SAEs (`normalize_activations`, `k`, ...).
    """

    name: str
    repo_id: str
    converter: str
    model: str
    settings: Mapping[str, Any]
    groups: tuple[Mapping[str, Any], ...]

    @cached_property
    def saes(self) -> dict[str, PublishedSae]:
        """Every SAE by its id."""
        found = (_member(group, block, l0) for group in self.groups for block, l0 in _members(group))
        return {sae.id: sae for sae in found}

    def find(self, name: str) -> PublishedSae:
        """The SAE of an id.

        Raises:
            UserError: the release has none; the message names the nearest ids.
        """
        if name not in self.saes:
            known = [*self.patterns(), *self.saes]
            raise UserError(f"sae.id={name}: release {self.name} has no such SAE; {_nearest(name, known)}")
        return self.saes[name]

    def choices(self, pattern: str) -> list[PublishedSae]:
        """The SAEs whose id fits a pattern with `{l0}`, by ascending L0."""
        fits = re.compile(re.escape(pattern).replace(re.escape(L0), r"\d+"))
        return sorted((sae for id, sae in self.saes.items() if fits.fullmatch(id)), key=lambda sae: sae.l0 or 0)

    def patterns(self) -> list[str]:
        """Ids with {layer} and {l0} in place of numbers that differ."""
        return list(dict.fromkeys(str(group["id"]) for group in self.groups))


@cache
def release_named(name: str) -> PublishedRelease:
    """A release of the table.

    Raises:
        UserError: there is none of this name; the message names the nearest ones.
    """
    releases = _table()["releases"]
    if name not in releases:
        raise UserError(f"sae.release={name}: no such release in SAELens' registry; {_nearest(name, list(releases))}")
    facts = releases[name]
    return PublishedRelease(
        name, facts["repo_id"], facts["converter"], facts["model"], facts.get("settings", {}), tuple(facts["saes"])
    )


def release_names() -> list[str]:
    """Names of all releases."""
    return list(_table()["releases"])


def settings_of_repositories(converter: str) -> dict[str, Mapping[str, Any]]:
    """What only the registry says of the SAEs of a hub repository, by repository, of one layout."""
    releases = [facts for facts in _table()["releases"].values() if facts["converter"] == converter]
    return {facts["repo_id"]: facts["settings"] for facts in releases if "settings" in facts}


@cache
def _table() -> dict[str, Any]:
    text = resources.files("sae_match").joinpath(TABLE).read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _members(group: Mapping[str, Any]) -> Iterator[tuple[int | None, int | None]]:
    """Block and L0 of every SAE of a group."""
    if "l0s" in group:
        yield from ((None if block == "None" else int(block), l0) for block, l0s in group["l0s"].items() for l0 in l0s)
    elif "layers" in group:
        for run in group["layers"].split(","):
            first, _, last = run.partition("-")
            yield from ((block, None) for block in range(int(first), int(last or first) + 1))
    else:
        yield None, None


def _member(group: Mapping[str, Any], block: int | None, l0: int | None) -> PublishedSae:
    def filled(key: str) -> str | None:
        pattern = group.get(key)
        return pattern and pattern.replace("{layer}", str(block)).replace(L0, str(l0))

    name = filled("id") or ""
    return PublishedSae(
        name, filled("path") or name, Site(group["site"]), block, l0,
        group.get("scales", {}).get(str(block)), filled("neuronpedia"),
    )  # fmt: skip


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=4, cutoff=0.3) or known[:4]
    return f"nearest: {', '.join(near)}"
