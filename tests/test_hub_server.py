"""The test hub itself: the libraries that own the protocol must accept what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from os import environ
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import Hub, etag_of, set_offline


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A repository with a small file, an LFS file and a folder."""
    root = tmp_path / "repo"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "config.json").write_text('{"a": 1}')
    (root / "deep" / "er" / "weights.npz").write_bytes(bytes(range(256)) * 64)
    return root


def test_files_trees_and_revisions(hub: Hub, files: Path, tmp_path: Path) -> None:
    hub.publish("owner/name", files)
    path = Path(hf_hub_download("owner/name", "deep/er/weights.npz"))
    assert path.read_bytes() == (files / "deep/er/weights.npz").read_bytes()
    assert path.resolve().name == etag_of(files / "deep/er/weights.npz")
    assert {p.name for p in Path(snapshot_download("owner/name")).rglob("*.*")} >= {"config.json", "weights.npz"}
    api = HfApi(endpoint=hub.url)
    assert api.list_repo_files("owner/name") == ["config.json", "deep/er/weights.npz"]
    entries = {e.path: e for e in api.list_repo_tree("owner/name", recursive=True)}
    assert entries["deep/er/weights.npz"].lfs.sha256 == etag_of(files / "deep/er/weights.npz")
    assert sorted(HfFileSystem(endpoint=hub.url).glob("owner/name/deep/**/*.npz")) == ["owner/name/deep/er/weights.npz"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    hub.publish("owner/name", tmp_path / "other", revision="refs/pr/1")
    assert Path(hf_hub_download("owner/name", "config.json", revision="refs/pr/1")).read_text() == "{}"
    assert api.model_info("owner/name", revision="refs/pr/1").sha != api.model_info("owner/name").sha


def test_each_refusal_is_what_the_client_expects(hub: Hub, files: Path) -> None:
    hub.publish("owner/name", files)
    hub.publish("owner/gated", files, gate="accepted")
    for repo_id, name, revision, kind in (
        ("owner/absent", "config.json", None, RepositoryNotFoundError),
        ("owner/name", "absent.json", None, RemoteEntryNotFoundError),
        ("owner/name", "config.json", "absent", RevisionNotFoundError),
        ("owner/gated", "config.json", None, GatedRepoError),
    ):
        with pytest.raises(kind):
            hf_hub_download(repo_id, name, revision=revision)
    with pytest.raises(GatedRepoError):
        hf_hub_download("owner/gated", "config.json", token="another")
    assert hf_hub_download("owner/gated", "config.json", token="accepted")


def test_a_cut_download_is_resumed_and_a_short_one_refused(hub: Hub, files: Path) -> None:
    hub.publish("owner/name", files)
    hub.fail("weights", cut_after=1000, methods=("GET",), times=1)
    assert Path(hf_hub_download("owner/name", "deep/er/weights.npz")).stat().st_size == 256 * 64
    hub.fail("config", body=b"{", methods=("GET",))
    with pytest.raises(Exception, match=r"peer closed|Consistency"):
        hf_hub_download("owner/name", "config.json")
    hub.faults.clear()
    hub.fail("config", status=503)
    with pytest.raises(LocalEntryNotFoundError) as caught:
        hf_hub_download("owner/name", "config.json")
    assert isinstance(caught.value.__cause__, HfHubHTTPError) and "503" in str(caught.value.__cause__)


def test_datasets_stream_from_it(hub: Hub, tmp_path: Path) -> None:
    from datasets import load_dataset

    (tmp_path / "set" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    hub.publish("owner/set", tmp_path / "set", kind="dataset")
    rows = load_dataset("owner/set", split="train", streaming=True)
    assert [row["text"] for row in rows] == ["a", "b"]


def test_offline_needs_the_cache(hub: Hub, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish("owner/name", files)
    hf_hub_download("owner/name", "config.json")
    set_offline(monkeypatch)
    before = len(hub.requests)
    assert hf_hub_download("owner/name", "config.json")
    with pytest.raises(FileNotFoundError):
        hf_hub_download("owner/name", "deep/er/weights.npz")
    assert len(hub.requests) == before


def test_a_subprocess_is_pointed_at_it_by_its_environment(hub: Hub, files: Path, tmp_path: Path) -> None:
    hub.publish("owner/gated", files, gate="accepted")
    code = "from huggingface_hub import hf_hub_download as d; print(open(d('owner/gated', 'config.json')).read())"
    environment = environ | hub.environment(tmp_path / "cache", token="accepted")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"a": 1}
