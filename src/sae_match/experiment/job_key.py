"""What a job is: the scientific part of its configuration, and the content of everything it reads."""

from __future__ import annotations

from typing import Any

from sae_match.content import content_key
from sae_match.errors import UserError
from sae_match.hub import content_hash
from sae_match.judging.descriptions import explanation_files
from sae_match.record.science import LOCATIONS, science_of
from sae_match.rules import check_config
from sae_match.saes import SaeSource
from sae_match.study import Study

KEY_VERSION = 1
"""To be raised when what a finished record says can no longer be trusted. Versions of libraries and the code's commit
are recorded beside the results and do not enter: a new one is a reason for rerun=all, which the user decides."""


def job_key(study: Study) -> str | None:
    """Content key of a job, 64 hexadecimal digits: equal for jobs that must find the same.

    None where it cannot be known, because the configuration or an input is wrong, or an input is not on this machine
    yet; such a job has to run. Nothing is downloaded.
    """
    try:
        check_config(study)
        inputs = input_hashes(study)
    except (UserError, OSError):
        return None
    facts = {"version": KEY_VERSION, "science": science_of(study.config, LOCATIONS), "inputs": inputs}
    if study.metrics:
        facts["metrics"] = {metric.name: metric.key() for metric in study.metrics.values()}
    return content_key(facts)


def input_hashes(study: Study) -> dict[str, Any]:
    """What identifies each input: a local file's sha256, a hub file's blob, a hub model's commit, a text's identity.

    A hub text is identified by its repository and revision: its tokens, once made, stay what they were.

    Raises:
        UserError: an input is wrong, or not on this machine.
        OSError: it cannot be read.
    """
    layers = list(range(study.layers.first, study.layers.last + 1))
    saes = SaeSource(study.sae, tuple(layers))
    inputs: dict[str, Any] = {"saes": {str(layer): saes.identity(layer) for layer in layers}}
    if study.evaluation.full:
        inputs["model"] = study.model.identity()
        inputs["text"] = study.dataset.key()
    if study.judging.neuronpedia is not None:
        folder = study.judging.neuronpedia
        inputs["explanations"] = [[content_hash(path) for path in explanation_files(folder, layer)] for layer in layers]
    return inputs
