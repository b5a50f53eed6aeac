"""The content key of a job, and whether it has to run and where its record goes, given those of earlier launches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sae_match.content import content_key
from sae_match.errors import UserError
from sae_match.files import read_json_object
from sae_match.hub import content_hash
from sae_match.judging.descriptions import explanation_files
from sae_match.keys import Keyed
from sae_match.pairs import JobPairs, job_pairs, span
from sae_match.record.configuration import LOCATIONS, science_hash, science_of
from sae_match.record.contents import FEATURES, METRICS, PAIRS
from sae_match.record.state import Status, read_status, records_in
from sae_match.rules import check_config
from sae_match.study import Rerun, Study

logger = logging.getLogger(__name__)


KEY_VERSION = 1
"""To be raised when what a finished record says can no longer be trusted. Versions of libraries and the code's commit
are recorded beside the results and do not enter: a new one is a reason for rerun=all, which the user decides."""


class Action(StrEnum):
    """What happens to a job."""

    run = "run"
    skip = "skip"
    report = "report"


@dataclass(frozen=True)
class Decision:
    """What happens to a job, and where its record is or will be.

    Attributes:
        study: the configuration to run; its paths.output_dir is `directory`.
        directory: the job's record.
        metrics: headline numbers of a finished record that is not run again.
        key: content key of the job, where it is known before it runs.
    """

    action: Action
    study: Study
    directory: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    key: str | None = None


def decide(study: Study, sweep: Path | None = None) -> Decision:
    """Look for the job's record and decide what happens, as `study.rerun` says.

    A job is known by its key (`job_key`), not by its number: numbers shift when a sweep is extended, so a finished
    record counts wherever below the sweep's directory it lies. A job that has to run goes to its own directory; where
    that holds the record of another configuration that is done, or that another process is running, it goes beside it,
    to NUMBER-HASH. A finished record whose inputs have changed since is run again in its place. A job of a sweep that
    another process is running is left to it.

    Args:
        sweep: directory of the sweep that the job belongs to; None for a single job.
    """
    own, key = Path(study.paths.output_dir), job_key(study)
    science = science_hash(study.config)
    records = _records(own, sweep)
    done = _finished(records, key)
    if done is not None and study.rerun is not Rerun.all:
        logger.info("done already, with the same configuration and inputs: %s (rerun=all runs it again)", done)
        return Decision(Action.skip, study.at(done), done, read_json_object(done / METRICS) or {})
    running = None if sweep is None else _running(records, science)
    if running is not None:
        return Decision(Action.report, study, running)
    directory = done or _earlier(records, science) or _place(own, sweep, science)
    if study.rerun is Rerun.none:
        status = read_status(directory)
        state = "not there" if status is None else status.state
        logger.info("rerun=none: %s is %s, and left as it is", directory, state)
        return Decision(Action.report, study, directory)
    return Decision(Action.run, study.at(directory), directory, key=key)


def _records(own: Path, sweep: Path | None) -> list[tuple[Path, Status]]:
    """Records that may be the job's: its own directory's first, then all of the sweep."""
    status = read_status(own)
    found = [] if status is None else [(own, status)]
    return found + ([] if sweep is None else list(records_in(sweep)))


def _finished(records: list[tuple[Path, Status]], key: str | None) -> Path | None:
    """The finished, readable record with this key."""
    for directory, status in records:
        if key is not None and status.state == "done" and status.key == key:
            tables = all((directory / name).is_file() for name in (PAIRS, FEATURES))
            if tables and read_json_object(directory / METRICS) is not None:
                return directory
            logger.warning("%s is marked as done, but its results are missing or damaged; it is run again", directory)
    return None


def _running(records: list[tuple[Path, Status]], science: str) -> Path | None:
    """The record of the same configuration that another process, here or on another host, is writing."""
    for directory, status in records:
        if status.alive and not status.own and status.science == science:
            logger.warning(
                "%s: process %s on %s is running this job; it is left to it", directory, status.pid, status.host
            )
            return directory
    return None


def _earlier(records: list[tuple[Path, Status]], science: str) -> Path | None:
    """The finished record of the same configuration over other inputs, or with damaged results."""
    for directory, status in records:
        if status.state == "done" and status.science == science:
            logger.info("%s: inputs or results are not what they were; it is run again", directory)
            return directory
    return None


def _place(own: Path, sweep: Path | None, science: str) -> Path:
    """The job's own directory, or one beside it where that is another job's."""
    status = read_status(own)
    taken = status is not None and (status.alive or status.state == "done")
    if sweep is None or own.parent != sweep or not taken or (status is not None and status.science == science):
        return own
    beside = own.with_name(f"{own.name}-{science[:8]}")
    logger.info("%s holds another job of this sweep directory; this one's record goes to %s", own, beside)
    return beside


def job_key(study: Study) -> str | None:
    """Content key of a job, 64 hexadecimal digits: equal for jobs that must find the same.

    None where it cannot be known, because the configuration or an input is wrong, or an input is not on this machine
    yet; such a job has to run. Nothing is downloaded.
    """
    try:
        check_config(study)
        return known_key(study, job_pairs(study))
    except UserError:
        return None


def known_key(study: Study, pairs: JobPairs) -> str | None:
    """`job_key` of a configuration that keeps the rules."""
    try:
        facts: dict[str, object] = {"version": KEY_VERSION, "inputs": input_hashes(study, pairs)}
    except (UserError, OSError):
        return None
    if own := _own_classes(study):
        facts["own"] = own
    if study.metrics:
        facts["metrics"] = {metric.name: metric.key() for metric in study.metrics.values()}
    facts["science"] = science_of(study.config, LOCATIONS)
    return content_key(facts)


def input_hashes(study: Study, pairs: JobPairs) -> dict[str, Any]:
    """What identifies each input: a local file's sha256, a hub file's blob, a hub model's commit, a text's identity.

    A hub text is identified by its repository and revision: its tokens, once made, stay what they were.

    Raises:
        UserError: an input is wrong, or not on this machine.
        OSError: it cannot be read.
    """
    layers, folder, names = span(study), study.judging.neuronpedia, study.evaluation.stability_seeds
    files: dict[str, Sequence[Sequence[Path]]] = {}
    if names is not None:
        files["seeds"] = [pairs.sources[0].seed_files(layer, names) for layer in layers]
    if folder is not None:
        files["explanations"] = [explanation_files(folder, layer) for layer in layers]
    similarities = (study.matching, *study.evaluation.similarities)
    if any(read := [one.files(layer) for one in similarities for layer in layers]):
        files["similarities"] = read
    inputs: dict[str, Any] = {}
    if study.evaluation.full:
        inputs |= {"model": [side.model.identity() for side in pairs.sides], "text": study.dataset.key()}
    sites = (*pairs.sites, *(pair.b for pair in pairs.seeds))
    inputs["saes"] = [[site.source, site.at, pairs.sources[site.source].identity(site.at)] for site in sites]
    return inputs | {name: [[content_hash(path) for path in one] for one in each] for name, each in files.items()}


def _own_classes(study: Study) -> list[object]:
    """Facts (with the code) of what results depend on that is not of this package: editing it makes another job."""
    controls = list(study.evaluation.controls.values())
    parts: list[object] = [study.matching, study.solver, *study.evaluation.splices.values(), *controls]
    for control in controls:
        parts += [getattr(control, name) for name in ("similarity", "solver") if hasattr(control, name)]
    own = (part for part in parts if not type(part).__module__.startswith("sae_match."))
    return [part.facts() for part in own if isinstance(part, Keyed)]
