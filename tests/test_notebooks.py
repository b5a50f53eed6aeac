"""The notebooks run as they are, offline, and are committed without output."""

from __future__ import annotations

import ast
import json
import linecache
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "multirun" / "notebooks"
WITH_MODEL = ("follow_a_feature",)
"""Notebooks that convert the embedded language model, which takes a minute."""


def cells(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The value of the last expression of every code cell."""
    module, shown = ModuleType(f"notebook_{name}"), list[Any]()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for number, cell in enumerate(cell for cell in cells(name) if cell["cell_type"] == "code"):
        source, file = "".join(cell["source"]), f"<{name} {number}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # as IPython does
        tree, value = ast.parse(source), None
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, file, "exec"), vars(module))
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), file, "eval"), vars(module))
        shown.append(value)
    return shown


def names() -> list[Any]:
    found = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    return [pytest.param(name, marks=pytest.mark.slow if name in WITH_MODEL else ()) for name in found]


@pytest.mark.parametrize("name", names())
def test_is_committed_without_output(name: str) -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(name) if "outputs" in cell)


def test_two_saes(monkeypatch: pytest.MonkeyPatch) -> None:
    matching, table, shares = run("two_saes", monkeypatch)
    assert matching.gap == 0
    assert table["decoder_cosine"].min() > 0.95
    assert shares["matched"] > 0.4
    assert shares["random"] < 0.01


def test_my_activations(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = run("my_activations", monkeypatch)[-1].set_index(["metric", "variant"])
    assert capsys.readouterr().out == "100% of the features found their own direction\n"
    score = table.loc[("matching_score", "matched")]
    assert 0.8 < score["low"] < score["value"] < score["high"] <= 1
    assert table.loc[("explained_variance", "encode_decode_current"), "value"] > 0.5


def test_my_matcher_metric_and_splice(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run("my_matcher_metric_and_splice", monkeypatch)
    table = shown[-1]["value"]
    assert "partners are those of the paper's matching" in shown[1]
    assert table["matching_score", "matched"] > table["matching_score", "excites"]
    assert table["surprise", "matched"] > table["surprise", "excites"] > 1
    assert table["explained_variance", "encode_permute_decode"] > table["explained_variance", "shifted"]


@pytest.mark.slow
def test_follow_a_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (path, cosines), first, last = run("follow_a_feature", monkeypatch)
    assert list(path) == list(range(11, 19))
    assert min(cosines) > 0.9
    assert len(first) == len(last) == 4
