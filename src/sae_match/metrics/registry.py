"""The metrics of this package, the numbers that steps of a job report by themselves, and users' metrics with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sae_match.errors import UserError
from sae_match.metrics.built_in import MEASURED
from sae_match.metrics.description import CEILING, DIFFERENCE, TO_CEILING, Description
from sae_match.metrics.functional import FUNCTIONAL
from sae_match.metrics.metric import Metric

BUILT_IN: Mapping[str, Metric] = {metric.name: metric for metric in (*MEASURED, *FUNCTIONAL)}
"""In the order of a table's columns."""

REPORTED = (
    Description(name="judge/same", label="pairs judged the same", unit="share", better="higher", headline=True,
                figure="record", beside=("random",)),
    Description(name="judge/maybe", label="pairs judged perhaps the same", unit="share"),
    Description(name="judge/different", label="pairs judged different", unit="share", better="lower"),
    Description(name="judge/score", label="judge's score", unit="1 different to 3 same", better="higher",
                distance=True),
    Description(name="judge/order_disagreement", label="pairs judged differently in the other order", unit="share",
                better="lower"),
    Description(name="judge_count/", unit="pairs", combine="sum"),
    Description(name="agreement", label="agreement with exact", unit="share of features", better="higher",
                distance=True),
    Description(name="null_threshold", label="confidence under the rotated null", figure="none"),
    Description(name="above_null", label="features above the rotated null", unit="share", better="higher", tracked=True,
                beside=(CEILING,)),
    Description(name="children_per_feature", label="features of the wider SAE per feature", tracked=True),
    Description(name="split_features", label="features with several children", unit="share", tracked=True),
    Description(name="without_parent", label="features of the wider SAE without a parent", unit="share"),
    Description(name="flow/persist", label="features that persist", unit="share", headline=True,
                beside=("rotated", CEILING)),
    Description(name="flow/split", label="features that split", unit="share", tracked=True, figure="none"),
    Description(name="flow/merge", label="features that merge several", unit="share", tracked=True, figure="none"),
    Description(name="flow/birth", label="features without a parent", unit="share", tracked=True, figure="none"),
    Description(name="flow/death", label="features without a child", unit="share", tracked=True, figure="none"),
    Description(name="pw_mcc", label="PW-MCC of seeds", better="higher", headline=True, reference="seeds",
                beside=("rotated", "random")),
    Description(name="shared_fraction", label="features shared by two seeds", unit="share", better="higher",
                headline=True, reference="seeds", beside=("rotated", "random")),
    Description(name="reappearing", label="features that reappear, over the other seeds", unit="share",
                better="higher", figure="none", reference="seeds"),
    Description(name="subspace_share", label="unstable features in the other seed's unstable subspace", unit="share",
                figure="none", reference="seeds"),
    Description(name="subspace_share_random", label="unstable features in a random subspace", unit="share",
                figure="none", reference="seeds"),
    Description(name="subspace_rank", label="rank of the unstable subspace", unit="dimensions", figure="none",
                reference="seeds"),
    Description(name="objective", label="squared distance of all pairs", better="lower", combine="sum"),
    Description(name="lower_bound", label="lower bound of the objective", combine="sum", figure="none"),
    Description(name="gap", label="relative gap to the lower bound", better="lower", combine="max",
                tracked=True),
    Description(name="tolerance", label="tolerance of the lower bound", combine="sum", figure="none"),
    Description(name="matched_pairs", label="matched pairs", unit="features", combine="sum", figure="none"),
    Description(name="features_aside", label="features left unmatched beforehand", unit="features", combine="sum"),
    Description(name="tested_features", label="features that were tested", unit="features", combine="sum",
                figure="none"),
    Description(name="never_firing_features", label="features that never fire in a context", unit="features",
                combine="sum", figure="none"),
    Description(name="fingerprint_check", label="first-order against true effects", unit="correlation",
                better="higher", figure="none"),
    *(
        Description(name=f"steering/{name}{end}", label=f"{label}, scaled at {where}", unit=unit, figure="none",
                    tracked=True)
        for name, label, unit in (("kl", "KL divergence", "nats/token"), ("loss", "change of loss", "nats/token"),
                                  ("later", "change of a flow's later features", "share"),
                                  ("others", "change of other features", "share"))
        for end, where in (("", "one layer"), ("_all", "all layers"))
    ),
    Description(name="steering/all_over_first", label="KL, scaled at all layers / at the first", figure="none",
                tracked=True),
    Description(name="steering/all_over_sum", label="KL, removed at all layers / sum of single layers", better="lower",
                headline=True, figure="none", reference="flow_x0", beside=("random_x0",)),
    Description(name="steering/flow_over_random", label="KL at all layers, flows / random flows", figure="none",
                tracked=True),
    Description(name="mean_similarity", label="mean similarity of matched features", better="higher", figure="none"),
    Description(name="fit_correlation", label="mean correlation of matched features on other text", better="higher"),
    Description(name="solver_seconds", label="solver time", unit="s", better="lower", combine="sum", tracked=True),
    Description(name="solver/peak_memory_gib", label="peak memory", unit="GiB", combine="max", figure="none"),
    Description(name="solver/cosine_gap", label="gap of the cosine matching", combine="max", figure="none"),
    Description(name="solver/marginal_error", label="relative error of the marginals", combine="max", figure="none"),
    Description(name="solver/", combine="sum", figure="none"),
)  # fmt: skip
"""Numbers of the solver, of composition, nulls, seeds, a control's fit, the judge and interventions."""

DESCRIPTIONS: Mapping[str, Description] = {name: metric.description for name, metric in BUILT_IN.items()} | {
    about.name: about for about in REPORTED
}


def with_built_in(added: Mapping[str, Metric]) -> dict[str, Metric]:
    """The built-in metrics and further ones, by the names that these have in tables.

    Args:
        added: by key of the configuration (`metrics.KEY`).

    Raises:
        UserError: a name is taken, or ends like those that this package derives from others.
    """
    every = dict(BUILT_IN)
    for key, metric in added.items():
        name = metric.name
        if name in every or name in DESCRIPTIONS or name.split("/")[0] + "/" in DESCRIPTIONS:
            raise UserError(f"metrics.{key}: there is a metric named {name} already; give this one another name")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*", name):
            raise UserError(f"metrics.{key}: the name {name!r} must be letters, digits, '.', '_' and '-', parts by '/'")
        if name.endswith(("_low", "_high", DIFFERENCE, TO_CEILING)):
            raise UserError(f"metrics.{key}: the name {name} ends like that of a derived number; choose another one")
        every[name] = metric
    return every


def described(metrics: Iterable[Metric]) -> dict[str, Description]:
    """Descriptions of these metrics and of the numbers that the steps of a job report, by name."""
    return {metric.name: metric.description for metric in metrics} | {about.name: about for about in REPORTED}
