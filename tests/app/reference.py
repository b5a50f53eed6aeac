"""The reference of the configuration, conf/README.md, from the option files and the classes that they name.

`python -m tests.app.reference` writes it; a test checks that the committed page is fresh.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import typing
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from sae_match.app.build import Schema, TrainSchema
from sae_match.files import config_directory
from sae_match.study import Study
from sae_match.training.options import TrainConfig

PAGE = "README.md"
CONTROLS = "evaluation/controls"
"""Each option of this group is an entry of a dictionary, under its own name."""
HEAD = """# The configuration: every group and key

`python -m tests.app.reference` writes this page from the option files in this folder and the classes that they
name. Change those, not the page.

- `group=option` chooses a file, `group.key=value` changes one of its keys; `sae-match ... --cfg job` prints the result.
- The defaults here are those of the classes. An option's file lists what it sets, and is linked.
- *required*: the class has no default, so the option's file or the command line must set the key.
- An option of your own is a file of the same group in your `--config-dir`. A `_target_` outside `sae_match` needs
  `'trusted_packages=[my_package]'`.
"""


def reference(conf: Path) -> str:
    """The page in Markdown.

    Args:
        conf: the folder with config.yaml and the groups.
    """
    parts = [HEAD, "## Keys that belong to no group\n", _table(_keys(Schema, Study), "key", "default")]
    for folder in sorted({path.parent for path in conf.rglob("*.yaml")} - {conf}):
        group = folder.relative_to(conf).as_posix()
        if not group.startswith("hydra"):
            parts += [f"## {group}\n", *_group(conf, group)]
    training = tuple(f"`{name}" for name in ("training.", "datasets", "held_out"))
    rows = (row for row in _keys(TrainSchema, TrainConfig) if row[0].startswith(training))
    return "\n".join([*parts, "## Keys of `sae-match-train` alone\n", _table(rows, "key", "default")]).rstrip() + "\n"


def _group(conf: Path, group: str) -> Iterator[str]:
    """The options of a group, then the keys of the classes that they build."""
    options, kinds = [], []
    for path in sorted((conf / group).glob("*.yaml")):
        found = [get_class(target) for target in _targets(path)]
        names = ", ".join(f"`{kind.__name__}`" for kind in dict.fromkeys(found))
        options.append((f"[`{path.stem}`]({group}/{path.name})", names, _comment(path)))
        kinds += [kind for kind in found if kind not in kinds]
    if not kinds:
        yield _table(((link, text) for link, _, text in options), "option")
        return
    yield _table(options, "option", "class")
    defaults: dict[tuple[str, str], dict[str, str]] = {}
    prefix = group.replace("/", ".") + (".NAME." if group == CONTROLS else ".")
    for kind in kinds:
        for key, default, text in _keys(kind, kind, prefix):
            defaults.setdefault((key, text), {})[f"`{kind.__name__}`"] = default
    rows = (
        (key, _one_of(by_class.values()), "" if len(by_class) == len(kinds) else ", ".join(by_class), text)
        for (key, text), by_class in defaults.items()
    )
    yield _table(rows, "key", "default", "class, where not all")


def _one_of(defaults: Iterable[str]) -> str:
    different = set(defaults)
    return different.pop() if len(different) == 1 else "*by class*"


def _targets(path: Path) -> list[str]:
    """Classes that an option file builds, itself or in the file that it begins from."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    entries = [content] if "_target_" in content else [value for value in content.values() if isinstance(value, dict)]
    found = [entry["_target_"] for entry in entries if "_target_" in entry]
    bases = [base for base in content.get("defaults", ()) if isinstance(base, str) and base != "_self_"]
    return found or list(dict.fromkeys(name for base in bases for name in _targets(path.with_name(f"{base}.yaml"))))


def _comment(path: Path) -> str:
    """The comment at the head of an option file, as far as its first command."""
    head = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = [line[2:] for line in head if not line.startswith("# @")]
    commands = [i for i, line in enumerate(text) if line.startswith(("  ", "The paper:"))]
    return " ".join(text[: commands[0]] if commands else text)


def _keys(kind: type, documented: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of every field; nested dataclasses key by key.

    Args:
        documented: the class whose source holds the docstrings, where it is not `kind` itself.
    """
    kinds, docs = typing.get_type_hints(kind), _docstrings(documented)
    for item in fields(kind):
        inner = kinds[item.name]
        if is_dataclass(inner) and isinstance(inner, type) and not inspect.isabstract(inner):
            yield from _keys(inner, inner, f"{prefix}{item.name}.")
        elif inner is not Any or item.name in docs:
            choices = _choices(inner) if " | " not in docs.get(item.name, "") else ""
            yield f"`{prefix}{item.name}`", _default(item), docs.get(item.name, "") + choices


def _docstrings(kind: type) -> dict[str, str]:
    """The docstring below every field, those of base classes included."""
    found = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(tree, ast.ClassDef)
            for item, after in pairwise(tree.body):
                if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr):
                    found[ast.unparse(item.target)] = " ".join(ast.literal_eval(after.value).split())
    return found


def _choices(kind: Any) -> str:
    found = [part for part in (kind, *typing.get_args(kind)) if isinstance(part, type) and issubclass(part, Enum)]
    return "".join(f" ({' | '.join(str(member.value) for member in part)})" for part in found)


def _default(item: Field[Any]) -> str:
    value = item.default
    if isinstance(value, FieldInfo):
        value = value.get_default(call_default_factory=True)
    elif value is MISSING and item.default_factory is not MISSING:
        value = item.default_factory()
    if value in (MISSING, PydanticUndefined, "???"):
        return "*required*"
    return "`null`" if value is None else f"`{json.dumps(to_jsonable_python(value))}`"


def _table(rows: Iterable[tuple[str, ...]], *heads: str) -> str:
    head = (*heads, "meaning")
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    (config_directory() / PAGE).write_text(reference(config_directory()), encoding="utf-8")
