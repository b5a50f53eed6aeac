"""Functional tests of a report's jobs: what the partners of every matcher do, with resamples that all matchers share.

A bootstrap over features: one draw of the features of a pair of SAEs serves every matcher and every job that compared
these SAEs, so that differences between matchers are paired. Pandas and NumPy only.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from ..files import reading
from ..metrics.bootstrap import MIN_DOCUMENTS, Floats, wilson
from ..metrics.description import CEILING, MATCHED, SPLICED
from ..metrics.functional import quality_area
from ..record.contents import FUNCTIONAL, MATCHERS
from .records import Record
from .resampling import SAMPLES, SEED, Interval

OWN = (MATCHED, CEILING, "exact")
"""Names of the job's own matcher: of neighbors, of two seeds, of layers further apart."""
REFERENCES = {
    "most_affected": "feature that loses most",
    "hard_negative": "most similar other feature",
    "coactive_partner": "random co-active partner",
    "random_partner": "random partner",
}
"""Variants that are no matchers, and what they are called."""
RATIOS = (
    "deactivation", "deactivation_top1", "deactivation_mrr", "deactivation_silent", "substitution", "fingerprint",
    "fingerprint_mrr",
)  # fmt: skip
AUSQC = "ausqc"
SHARES = ("deactivation_top1", "deactivation_silent")
"""Shares of features: their intervals are Wilson's, which have width for 0 of n, too."""
PAIR_METRICS = (
    "coverage", "matching_score", "delta_loss", "solver_seconds", "objective", "mean_similarity", "matched_pairs",
)  # fmt: skip
"""What is read from pairs.csv."""
_PAIR = ["layer", "layer_to"]
_REQUIRED = [*_PAIR, "role", "variant", "feature", "partner", "quartile"]
_MEASURED = [
    "contexts", "confidence", "decoder_cosine", "drop", "silent", "rank", "kl_ablated", "kl_substituted",
    "fingerprint", "fingerprint_rank",
]  # fmt: skip
_CHUNK = 25
"""Resamples at a time: more do not fit into a processor's cache."""


@dataclass(frozen=True)
class Tests:
    """The tests of all jobs.

    Attributes:
        features: one row per job, pair, matcher and sampled feature of A, with `matcher`, `stratum` (the two SAEs),
            `cluster` (stratum and feature), the terms of every ratio in `RATIOS`, and the columns of the file.
        numbers: one row per job, pair, matcher and metric in `PAIR_METRICS`: `job`, `layer`, `layer_to`, `role`,
            `matcher`, `metric`, `value`.
        names: what each matcher is called, in the order of the jobs.
        parts: similarity, folding and assignment of the matchers that say so.
    """

    features: pd.DataFrame
    numbers: pd.DataFrame
    names: Mapping[str, str]
    parts: Mapping[str, Mapping[str, str]]


def read_tests(jobs: Sequence[Record]) -> Tests | None:
    """The functional tests of the finished jobs; None where no job has any.

    A matcher is the same in several jobs if it has the same variant and description. Two descriptions of one variant,
    as of `matched` in a sweep over similarities, are two matchers.

    Raises:
        UserError: a file is damaged or lacks a column.
    """
    found = [job for job in jobs if job.state == "done" and (job.path / FUNCTIONAL).is_file()]
    if not found:
        return None
    described = [_read_matchers(job) for job in found]
    several = {
        name
        for name in {name for entries in described for name in entries}
        if len({json.dumps(entries[name], sort_keys=True) for entries in described if name in entries}) > 1
    }
    tables, numbers = [], []
    names: dict[str, str] = {}
    parts: dict[str, Mapping[str, str]] = {}
    for job, entries in zip(found, described, strict=True):
        table = _read_features(job)
        own: dict[str, str] = {}
        for variant in dict.fromkeys(table["variant"]):
            name = MATCHED if variant in OWN else str(variant)
            entry = entries.get(name, {})
            title = _title(job, name, entry, name in several)
            own[variant] = f"{name}: {title}" if name in several and entry else name
            taken = title in names.values() and own[variant] not in names
            names.setdefault(own[variant], f"{title} [{name}]" if taken else title)
            if entry:
                parts[own[variant]] = entry
        tables.append(table.assign(matcher=table["variant"].map(own)))
        numbers.append(_pair_numbers(job, table, own))
    features = pd.concat(tables, ignore_index=True)
    features["stratum"] = features.groupby(["saes", "role", *_PAIR], sort=False).ngroup()
    features["cluster"] = features.groupby(["stratum", "feature"], sort=False).ngroup()
    return Tests(features, pd.concat(numbers, ignore_index=True), names, parts)


def _title(job: Record, name: str, entry: Mapping[str, str], several: bool) -> str:
    """What a matcher is called; with all that it is made of where its variant is not the same in every job."""
    look = job.labels.variants.get(name)
    known = entry.get("label") or REFERENCES.get(name) or (look.label if look else name.replace("_", " "))
    if several and entry:
        known += f": {similarity_of(entry)}, {entry['assignment']}"
    return f"{known} (matched)" if name == MATCHED and known != MATCHED else known


def similarity_of(parts: Mapping[str, str]) -> str:
    """What the features are compared by, folded or not."""
    return parts["similarity"].replace("_", " ") + (", folded" if parts["folding"] == "theta" else "")


def _read_matchers(job: Record) -> dict[str, dict[str, str]]:
    """The matchers that the job describes; its own one as `matched`, whatever the pair."""
    path = job.path / MATCHERS
    with reading(path, "description of the matchers"):
        content = json.loads(path.read_text(encoding="utf-8"))
        keys = ("label", "similarity", "folding", "assignment")
        found = {name: {key: str(entry[key]) for key in keys} for name, entry in content.items()}
    return {MATCHED if name in OWN else name: entry for name, entry in reversed(found.items())}


def _read_features(job: Record) -> pd.DataFrame:
    """The job's table with the terms of the ratios. A feature without partner, or whose partner is silent, counts 0,
    but has no substitution; one without contexts, and all where a test was not run, are missing."""
    path = job.path / FUNCTIONAL
    with reading(path, "table of functional tests"):
        table = pd.read_parquet(path)
        columns = [name for name in (*_REQUIRED, *_MEASURED) if name in (*_REQUIRED, *table.columns)]
        numbers = dict.fromkeys([name for name in _MEASURED if name != "silent"], "float64")
        table = table[columns].reindex(columns=[*_REQUIRED, *_MEASURED]).astype(numbers)
        partner = table["partner"] >= 0
        silent = table["silent"].astype("boolean").fillna(False).astype(bool)
    tested = table["contexts"] != 0

    def counted(values: pd.Series[Any], test: str) -> pd.Series[Any]:
        ran = table[test].notna().groupby([table[name] for name in _PAIR]).transform("any")
        return values.fillna(0.0).where(ran & tested)

    def reciprocal(rank: pd.Series[Any]) -> pd.Series[Any]:
        return (1 / rank).where(rank > 0)

    ablated = table["kl_ablated"].where(tested & partner)
    return table.assign(
        job=job.name,
        # SAEs by all that is configured of them, so that jobs which share them share the draws of their features.
        saes=repr((job.config.get("model"), job.config["sae"])) if "sae" in job.config else job.path.as_posix(),
        deactivation=counted(table["drop"].where(partner & ~silent), "drop"),
        deactivation_top1=counted((table["rank"] == 1).astype(float), "drop"),
        deactivation_mrr=counted(reciprocal(table["rank"]), "drop"),
        deactivation_silent=counted(silent.astype(float), "drop"),
        substitution=ablated - table["kl_substituted"],
        ablated=ablated,
        fingerprint=counted(table["fingerprint"].where(partner), "fingerprint"),
        fingerprint_mrr=counted(reciprocal(table["fingerprint_rank"]), "fingerprint"),
    )


def _pair_numbers(job: Record, table: pd.DataFrame, own: Mapping[str, str]) -> pd.DataFrame:
    """The job's rows of pairs.csv by matcher; of losses those of the splice along its pairs."""
    columns = ["job", *_PAIR, "role", "matcher", "metric", "value"]
    if job.pairs is None:
        return pd.DataFrame(columns=columns)
    rows = job.pairs[job.pairs["metric"].isin(PAIR_METRICS)].merge(table[[*_PAIR, "role"]].drop_duplicates(), on=_PAIR)
    spliced = rows["metric"] == "delta_loss"
    matchers = dict(own)
    for name in (own[variant] for variant in OWN if variant in own):
        matchers |= dict.fromkeys(OWN, name)
    along = rows["variant"].where(rows["variant"].str.startswith(SPLICED)).str.removeprefix(SPLICED).str.lstrip("_")
    rows["matcher"] = rows["variant"].mask(spliced, along.replace("", MATCHED)).map(matchers)
    return rows.dropna(subset="matcher").assign(job=job.name)[columns]


def by_confidence(rows: pd.DataFrame) -> pd.DataFrame:
    """The pairs of one matcher whose substitution was measured, the most confident first, ties by feature index.

    Confidences are compared within a job and a pair of layers alone: of several, the top n % of each come together.
    """
    group = ["job", "stratum"]
    pairs = rows[rows["confidence"].notna() & rows["substitution"].notna()]
    pairs = pairs.sort_values([*group, "confidence", "feature"], ascending=[True, True, False, True], kind="stable")
    groups = pairs.groupby(group, sort=False)
    share = (groups.cumcount() + 1) / groups["feature"].transform("size")
    return pairs.assign(share=share).sort_values(["share", *group], kind="stable")


def quality_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """R = 1 - sum D_sub / sum D_abl of the top n pairs, as `substitution` over the `share` n / N of one matcher's
    pairs, whose mean is AUSQC. Points at which no ablation has had an effect yet are undefined and left out."""
    pairs = by_confidence(rows)
    ablated = pairs["ablated"].cumsum().to_numpy()
    values = pairs["substitution"].cumsum().to_numpy()[ablated > 0] / ablated[ablated > 0]
    share = (np.arange(len(pairs)) + 1)[ablated > 0] / max(len(pairs), 1)
    return pd.DataFrame({"share": share, "substitution": values})


class Scores:
    """The numbers of every matcher on resamples that all of them share.

    Args:
        features: rows of `Tests.features`, of one role.
        samples, seed: of the bootstrap.
    """

    def __init__(
        self,
        features: pd.DataFrame,
        samples: int = SAMPLES,
        seed: int = SEED,
    ) -> None:
        codes, names = pd.factorize(features["matcher"])
        self.matchers = [str(name) for name in names]
        clusters, _ = pd.factorize(features["cluster"])
        self.n_features, width = int(clusters.max()) + 1, len(self.matchers)
        strata = features["stratum"].groupby(clusters).first().to_numpy()
        present: dict[str, npt.NDArray[np.bool_]] = {}
        terms: dict[str, Floats] = {}
        self._sums: dict[str, Floats] = {}
        self._support: dict[str, npt.NDArray[np.intp]] = {}
        for name in RATIOS:
            known = features[name].notna().to_numpy()
            at = clusters[known], codes[known]
            there = np.zeros((self.n_features, width), bool)
            there[at] = True
            terms[name] = both = np.zeros((self.n_features, 2 * width))
            np.add.at(both, at, features.loc[known, name])
            below = features.loc[known, "ablated"] if name == "substitution" else 1.0
            np.add.at(both, (at[0], at[1] + width), below)
            # Matchers that were tested on the same features share their sums.
            present[name], support = np.unique(there, axis=1, return_inverse=True)
            self._support[name] = support.ravel()
            self._sums[name] = np.empty((samples + 1, present[name].shape[1], 2 * width))
        self._present = present
        orders = [by_confidence(features[codes == code]).index for code in range(width)]
        places = [features.index.get_indexer(order) for order in orders]
        columns = features[["substitution", "ablated"]].to_numpy()
        curves = [(clusters[rows], *columns[rows].T) for rows in places]
        self._ausqc = np.full((samples + 1, width), np.nan)
        start = 0
        for counts in _resamples(strata, samples, seed):
            rows = slice(start, start := start + len(counts))
            for name, both in terms.items():
                for column, mask in enumerate(present[name].T):
                    self._sums[name][rows, column] = counts[:, mask] @ both[mask]
            for code, curve in enumerate(curves):
                features, kept, ablated = curve
                drawn = counts[:, features]
                self._ausqc[rows, code] = quality_area(drawn * ablated, drawn * (ablated - kept), drawn)

    def _numbers(self, metric: str, matcher: str, other: str | None = None) -> Floats:
        """The value, then that of each resample; with `other`, on the features on which both were tested."""
        code, width = self.matchers.index(matcher), len(self.matchers)
        if metric == AUSQC:
            return self._ausqc[:, code]
        support = self._support[metric][code if other is None else self.matchers.index(other)]
        above, below = (self._sums[metric][:, support, place] for place in (code, code + width))
        return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)

    def count(self, metric: str, matcher: str) -> int:
        """On how many features a matcher was tested."""
        return int(self._present[metric][:, self._support[metric][self.matchers.index(matcher)]].sum())

    def estimate(self, metric: str, matcher: str) -> Interval:
        """The number of a matcher; NaN where it was not tested."""
        numbers = self._numbers(metric, matcher)
        if metric in SHARES and np.isfinite(numbers[0]) and self.n_features >= MIN_DOCUMENTS:
            return Interval(float(numbers[0]), *wilson(float(numbers[0]), self.count(metric, matcher)))
        return _interval(numbers, self.n_features)

    def difference(self, metric: str, matcher: str, other: str) -> Interval:
        """What a matcher has more than another on the features on which both were tested: paired."""
        difference = self._numbers(metric, matcher, other) - self._numbers(metric, other, matcher)
        return _interval(difference, self.n_features)

    def ranks(self, metric: str, matchers: Sequence[str]) -> dict[str, int]:
        """1 + the number of the matchers that are better with an interval of the difference that excludes 0."""
        known = [name for name in matchers if np.isfinite(self._numbers(metric, name)[0])]
        return {
            name: 1 + sum(self.difference(metric, other, name).low > 0 for other in known if other != name)
            for name in known
        }


def _interval(numbers: Floats, n_features: int) -> Interval:
    """Of the value and that of each resample; NaN ends of too few features."""
    finite = numbers[1:][np.isfinite(numbers[1:])]
    known = len(finite) > 0 and n_features >= MIN_DOCUMENTS
    low, high = np.quantile(finite, (0.025, 0.975)) if known else (np.nan, np.nan)
    return Interval(float(numbers[0]), float(low), float(high))


def _resamples(strata: npt.NDArray[np.intp], samples: int, seed: int) -> Iterator[Floats]:
    """How often each feature is drawn, [resamples, features] at a time: all of them once, then with replacement as many
    as each pair of SAEs has."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    yield np.ones((1, len(strata)))
    for start in range(0, samples, _CHUNK):
        counts = np.zeros((min(_CHUNK, samples - start), len(strata)))
        for features in members:
            n = len(features)
            drawn = rng.integers(n, size=(len(counts), n)) + n * np.arange(len(counts))[:, None]
            counts[:, features] = np.bincount(drawn.ravel(), minlength=n * len(counts)).reshape(-1, n)
        yield counts


def spearman(rows: pd.DataFrame, x: str, y: str, samples: int = SAMPLES) -> Interval:
    """Spearman's rank correlation of two columns over rows of `Tests.features`, each feature once, with its 95 %
    interval (bootstrap over features); NaN where a column is constant."""
    once = rows.drop_duplicates("cluster")
    if min(once[x].nunique(), once[y].nunique()) < 2:
        return Interval(np.nan, np.nan, np.nan)

    def rho(a: Floats, b: Floats) -> float:
        return float(stats.spearmanr(a, b).statistic)

    columns = once[x].to_numpy(dtype=float), once[y].to_numpy(dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of resamples in which a column is constant
        found = stats.bootstrap(
            columns, rho, paired=True, vectorized=False, n_resamples=samples, method="percentile", random_state=SEED
        )
    return _interval(np.array([rho(*columns), *found.bootstrap_distribution]), len(once))
