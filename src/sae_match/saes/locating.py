"""From the names of a checkpoint's files to local paths: a directory in the hub's layout, or the hub itself."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from sae_match.config.sae_schema import SaeConfig
from sae_match.errors import UserError
from sae_match.saes.hub import download

_PLACEHOLDER = re.compile(r"\{(layer|next)(?::(0?\dd))?\}")


def local_root(root: str) -> Path:
    """The directory that `sae.root` names; `embedded/NAME` is a folder of the package's own assets."""
    if root.startswith("embedded/"):
        return Path(str(resources.files("sae_match").joinpath("assets", root.removeprefix("embedded/"))))
    return Path(root).expanduser()


def fetch(cfg: SaeConfig, name: str, layer: int) -> Path:
    """Local path of one file, downloaded where `cfg.root` is not set.

    Args:
        name: path inside the repository or the root.
        layer: for the message.

    Raises:
        UserError: neither root nor repo_id set, or the file is missing or cannot be downloaded.
    """
    inside_only(name)
    if cfg.root is None:
        if cfg.repo_id is None:
            raise UserError("neither sae.root nor sae.repo_id is set: name a directory or a hub repository")
        return download(cfg.repo_id, name, cfg.revision)
    root = local_root(cfg.root)
    path = root / name
    if not is_file(path):
        parent = path.parent
        while not parent.is_dir() and parent not in (root, root.parent):
            parent = parent.parent
        held = ", ".join(sorted(entry.name for entry in parent.iterdir())[:12]) if parent.is_dir() else ""
        raise UserError(
            f"no SAE for layer {layer}: {path} does not exist. "
            + (f"{parent} holds {held}." if held else f"{parent} is missing or empty (sae.root).")
        )
    return path


def fetch_folder(cfg: SaeConfig, names: tuple[str, ...], layer: int) -> Path:
    """The layer's folder, with all of `names` in it."""
    folder = layer_folder(cfg, layer)
    paths = [fetch(cfg, f"{folder}/{name}" if folder else name, layer) for name in names]
    return paths[0].parents[names[0].count("/")]


def layer_folder(cfg: SaeConfig, layer: int) -> str:
    """`sae.folder` with the layer filled in.

    Raises:
        UserError: not set, or with other placeholders than {layer} and {next}.
    """
    if cfg.folder is None:
        raise UserError("sae.folder is not set: name the folder of one layer, such as sae.folder='layer_{layer}'")
    return fill(cfg.folder, layer, "sae.folder").strip("/")


def inside_only(name: str) -> str:
    """The name itself: a path that stays inside the directory or repository it belongs to.

    Links are followed: the hub client's own cache consists of them.

    Raises:
        UserError: an absolute path, `..`, or an unprintable character.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\", "~")) or ".." in parts or ":" in parts[0] or not name.isprintable():
        raise UserError(
            f"{name[:200]!r}: names of files inside sae.root or sae.repo_id (from sae.filename, sae.folder, sae.width, "
            "sae.l0) are relative and without '..'; set sae.root to the directory itself"
        )
    return name


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have counts as no."""
    try:
        return path.is_file()
    except OSError:
        return False


def fill(pattern: str, layer: int, key: str) -> str:
    """A name pattern with {layer} and {next} (= layer + 1) filled in.

    Raises:
        UserError: other placeholders, or broken braces.
    """
    # str.format would also follow attributes ({layer.x}) and allocate any width ({layer:999999999d}).
    filled = _PLACEHOLDER.sub(lambda found: format(layer + (found[1] == "next"), found[2] or "d"), pattern)
    if "{" in filled or "}" in filled:
        raise UserError(
            f"{key}={pattern}: only {{layer}} and {{next}} can be filled in, with a width such as {{layer:02d}} at most"
        )
    return filled
