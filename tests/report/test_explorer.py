"""The page of a flow graph: its data unpacked again, hostile text kept as text, bounded details, damaged files."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sae_match.errors import UserError
from sae_match.flows.events import EVENTS
from sae_match.record import JobRecord
from sae_match.record.contexts import CONTEXTS, FIELDS, read_contexts, write_contexts
from sae_match.report import explorer
from sae_match.report.cli import main
from sae_match.report.explorer import explorer_page, packed, page_data, short
from sae_match.report.pages import NEURONPEDIA
from tests.report.conftest import job_table
from tests.report.planted_flow import EDGE_ROWS, HAPPENED, HOSTILE, TEXTS, planted_contexts, planted_flow, write_flow
from tests.report.test_path_page import Parsed


def unpacked(column: dict[str, str]) -> list[Any]:
    kinds = {"u8": "<u1", "u32": "<u4", "f32": "<f4"}
    return np.frombuffer(gzip.decompress(base64.b64decode(column["data"])), kinds[column["kind"]]).tolist()


def test_nodes_and_edges_are_those_of_the_graph_whatever_their_order() -> None:
    flow = planted_flow()
    mixed = replace(
        flow, nodes=flow.nodes.sample(frac=1, random_state=1), edges=flow.edges.sample(frac=1, random_state=2)
    )
    data = page_data(mixed, None)
    assert data["layers"] == [11, 12, 13]
    assert data["starts"] == [0, 3, 7, 9]
    assert unpacked(data["nodes"]["feature"]) == [feature for _, feature in HAPPENED]
    flags = [sum(1 << bit for bit, event in enumerate(EVENTS) if event in found) for found in HAPPENED.values()]
    assert unpacked(data["nodes"]["flags"]) == flags
    places = [*HAPPENED]
    assert unpacked(data["edges"]["source"]) == [places.index(row[:2]) for row in EDGE_ROWS]
    assert unpacked(data["edges"]["target"]) == [places.index(row[2:4]) for row in EDGE_ROWS]
    assert unpacked(data["edges"]["similarity"]) == pytest.approx([row[4] for row in EDGE_ROWS], rel=2**-13)
    assert unpacked(data["edges"]["deactivation"]) == pytest.approx(
        [row[8] for row in EDGE_ROWS], rel=2**-13, nan_ok=True
    )
    assert unpacked(data["edges"]["flags"]) == [row[5] + 2 * row[6] for row in EDGE_ROWS]
    assert [row["role"] for row in data["events"]] == ["adjacent", "adjacent", "seeds"]
    assert data["events"][0]["null_persist"] is None
    assert data["text"] is None


def test_what_was_not_measured_is_absent() -> None:
    data = page_data(planted_flow(measured=False), None)
    assert set(data["edges"]) == {"source", "target", "similarity", "flags"}
    assert np.isnan(unpacked(data["nodes"]["rate"])).all()


def test_short_numbers_are_close() -> None:
    exact = np.float32([0, 1, -0.1, 0.7, 3e-30, 1e30, np.nan, np.inf])
    assert short(exact).tolist() == pytest.approx(exact.tolist(), rel=2**-13, nan_ok=True)
    assert unpacked(packed(np.arange(3, dtype=np.uint8))) == [0, 1, 2]


def test_contexts_are_places_in_one_text() -> None:
    text = page_data(planted_flow(), planted_contexts())["text"]
    tokens = unpacked(text["tokens"])
    assert (text["contexts"], text["around"], text["window"], text["bins"]) == (2, 2, 6, 4)
    top = np.reshape(unpacked(text["top"]), (9, 3))
    assert [[TEXTS[row - 1] for row in rows if row] for rows in top[:3]] == [[" alpha", HOSTILE], [" beta"], []]
    first = text["layers"][0]
    assert unpacked(first["kept"]) == [1, 1, 1]
    places = unpacked(first["place"])
    assert [TEXTS[tokens[place - 1]] for place in places if place] == [" alpha", HOSTILE, " beta", " beta"]
    assert places[4:] == [0, 0]
    assert unpacked(first["histogram"])[:4] == [3, 1, 0, 1]


def test_details_that_outgrow_their_room_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "DETAIL_BYTES", 7 * (16 + 13))
    text = page_data(planted_flow(), planted_contexts())["text"]
    kept = [unpacked(layer["kept"]) for layer in text["layers"]]
    assert kept == [[1, 1, 0], [1, 1, 1, 0], [1, 1]]  # those with an edge
    assert text["contexts"] == 1
    assert len(unpacked(text["layers"][1]["place"])) == 3


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = explorer_page("a <b> title", write_flow(tmp_path))
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 3  # two of data, one that runs
    data = json.loads(parsed.inside["script"][1])
    assert data["links"] == [f"{NEURONPEDIA}/m/11-res/", f"{NEURONPEDIA}/m/12-res/", None]
    assert data["facts"]["model"] == "model <b>"
    assert data["text"]["vocabulary"][3] == HOSTILE.replace("\u202e", "\\u202e")
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "src" not in {name for _, attributes in parsed.tags for name in attributes}
    web = files("sae_match.report").joinpath("web")
    own = [file.read_text("utf-8") for file in web.iterdir() if file.name.endswith(".js")]
    assert not any(word in script for script in own for word in ("innerHTML", ".html(", "eval(", "fetch("))


def test_contexts_are_read_back(tmp_path: Path) -> None:
    found = planted_contexts()
    write_contexts(tmp_path / CONTEXTS, found)
    again = read_contexts(tmp_path / CONTEXTS)
    assert again.texts == TEXTS
    np.testing.assert_array_equal(again.ids, found.ids)
    assert list(again.layers) == [11, 12, 13]
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again.layers[12], name), getattr(found.layers[12], name))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder, found = write_flow(tmp_path), planted_contexts()
    write_contexts(folder / CONTEXTS, replace(found, ids=found.ids[:1]))  # places in a window that is not there
    with pytest.raises(UserError, match=rf"{CONTEXTS}: .*outside -1\.\.0"):
        explorer_page("title", folder)
    (folder / CONTEXTS).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=CONTEXTS):
        explorer_page("title", folder)
    flow = planted_flow()
    with pytest.raises(UserError, match="no node"):
        page_data(replace(flow, nodes=flow.nodes.iloc[1:]), None)
    with pytest.raises(UserError, match="layer 13"):
        page_data(flow, replace(found, layers={layer: found.layers[layer] for layer in (11, 12)}))


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    record = JobRecord(tmp_path / "job")
    record.write_config(yaml.safe_dump({"sae": {"name": "gemma"}}))
    with record.guard():
        write_flow(record.directory / "flow")
        record.write_metrics({})
        record.write_pairs(job_table())
    assert main([str(record.directory), "--output", str(tmp_path / "report")]) == 0
    page = Parsed((tmp_path / "report" / "flow.html").read_text(encoding="utf-8"))
    assert json.loads(page.inside["script"][1])["layers"] == [11, 12, 13]
    assert "flow.html" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "flow.html" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
