"""Materialised token windows on disk: `<cache_dir>/tokens/<key>/{windows.safetensors,manifest.json}`.

The key is a hash of the recipe; the manifest repeats the recipe and holds the hash of the content. It is written
last, so an entry without one is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_match.atomic import atomic_path, write_json
from sae_match.errors import UserError
from sae_match.text.token_windows import TokenWindows

_log = logging.getLogger(__name__)
_DAMAGE = (OSError, ValueError, KeyError, TypeError, SafetensorError)
_TENSORS, _MANIFEST = "windows.safetensors", "manifest.json"


def recipe_key(recipe: dict[str, Any]) -> str:
    """SHA-256 of a recipe, in hexadecimal; the order of its fields does not matter."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def read_entry(cache_dir: Path, recipe: dict[str, Any]) -> TokenWindows | None:
    """Return the windows stored for `recipe`, or None where there are none or they are damaged (with a warning)."""
    entry = cache_dir / "tokens" / recipe_key(recipe)
    if not (entry / _MANIFEST).exists():
        return None
    try:
        return _read(entry, recipe)
    except _DAMAGE as error:
        _log.warning("Cached tokens in %s are damaged (%s); they are built again.", entry, error)
        return None


def entry_damage(entry: Path) -> str | None:
    """What is wrong with an entry's directory, judged by its own manifest, or None."""
    try:
        recipe = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))["recipe"]
        if recipe_key(recipe) != entry.name:
            raise ValueError("the manifest is another entry's")
        _read(entry, recipe)
    except _DAMAGE as error:
        return str(error)
    return None


def _read(entry: Path, recipe: dict[str, Any]) -> TokenWindows:
    manifest = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
    tensors = load_file(entry / _TENSORS)
    windows = TokenWindows.build(tensors["ids"], tensors["document"], manifest["titles"], manifest["info"])
    if windows.key != manifest["content_key"] or manifest["recipe"] != recipe:
        raise ValueError("the content does not match the manifest")
    return windows


def write_entry(cache_dir: Path, recipe: dict[str, Any], windows: TokenWindows) -> Path:
    """Store windows under their recipe and return the entry's directory.

    Raises UserError where the cache directory cannot be written.
    """
    entry = cache_dir / "tokens" / recipe_key(recipe)
    manifest = {"recipe": recipe, "content_key": windows.key, "titles": windows.titles, "info": windows.info}
    try:
        with atomic_path(entry / _TENSORS) as temporary:
            save_file({"ids": windows.ids, "document": windows.document}, temporary, {"content_key": windows.key})
        write_json(entry / _MANIFEST, manifest)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Token windows cannot be written to {entry}: {error}\n"
            "Set paths.cache_dir to a directory that can be written and has room."
        ) from error
    return entry
