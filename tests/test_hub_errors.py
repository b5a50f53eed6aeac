"""What the user is told about failures that a loopback hub cannot produce, and that no token is repeated."""

from __future__ import annotations

import errno
import traceback

import httpx2
import pytest

from sae_match.errors import UserError
from sae_match.hub import explained
from sae_match.hub_errors import Repository, explain, holds_token

TOKEN = "hf_secretsecretsecret"
MODEL = Repository("owner/name", None, "model", "use a copy")
TEXT = Repository("owner/text", "v1", "dataset", "use a file")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (PermissionError(errno.EACCES, "denied", "/cache"), "cannot be written. Set HF_HOME"),
        (httpx2.ConnectError("name or service not known"), "cannot be reached"),
        (httpx2.ReadTimeout("timed out"), "cannot be reached"),
        (httpx2.RemoteProtocolError("peer closed"), "broke off"),
        (OSError("Consistency check failed: file should be of size 9"), "broke off"),
    ],
)
def test_each_failure_says_what_and_how_to_mend_it(error: Exception, words: str) -> None:
    """Also where another library wrapped it."""
    wrapped = RuntimeError("from a library")
    wrapped.__cause__ = error
    for link in (error, wrapped):
        message = explain(link, MODEL)
        assert message is not None and words in message and message.startswith("model owner/name")


def test_what_is_not_about_the_hub_goes_on_unchanged() -> None:
    assert explain(TypeError("ours"), MODEL) is None
    assert explain(FileNotFoundError("a local file"), MODEL) is None
    with pytest.raises(TypeError, match="ours"), explained(MODEL):
        raise TypeError("ours")
    with pytest.raises(UserError, match="already told"), explained(MODEL):
        raise UserError("already told")


def test_pages_and_labels() -> None:
    assert MODEL.page == "https://huggingface.co/owner/name" and MODEL.label == "model owner/name"
    assert TEXT.page == "https://huggingface.co/datasets/owner/text"
    assert TEXT.label == "dataset owner/text at revision v1"


@pytest.mark.parametrize("value", [TOKEN, f"{TOKEN}\nsecond line", f" {TOKEN} "])
def test_an_error_that_quotes_the_token_is_cut_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of a failed job is written into its record, and repeats the messages of every cause."""
    monkeypatch.setenv("HF_TOKEN", value)
    with pytest.raises(UserError) as caught, explained(MODEL):
        raise httpx2.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}'")
    assert "holds characters that no token has" in str(caught.value)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert holds_token(httpx2.LocalProtocolError(TOKEN)) and not holds_token(ValueError("another"))
    monkeypatch.delenv("HF_TOKEN")
    assert not holds_token(ValueError(TOKEN))


@pytest.mark.parametrize(
    ("repo_id", "meant"),
    [
        ("./model", None),
        ("/data/my/model", None),
        ("https://huggingface.co/google/gemma-2-2b", "google/gemma-2-2b"),
        ("https://huggingface.co/datasets/owner/text/tree/main", "owner/text"),
        ("google/gemma-2-2b/", "google/gemma-2-2b"),
        ("google/gemma-2-2b/layer_3", "google/gemma-2-2b"),
        ("a b", None),
    ],
)
def test_paths_and_addresses_are_no_names(repo_id: str, meant: str | None) -> None:
    with pytest.raises(UserError) as caught:
        Repository(repo_id, None, "model", "use model.path=DIR")
    message = str(caught.value)
    assert message.startswith(f"model.repo_id={repo_id} is no name of a hub repository (owner/name).")
    assert message.endswith("For a local folder, use model.path=DIR.")
    assert ("Did you mean" in message) == (meant is not None) and (meant is None or f"mean {meant}?" in message)


def test_names_of_one_word_are_names() -> None:
    assert Repository("gpt2", None, "model", "").repo_id == "gpt2"
