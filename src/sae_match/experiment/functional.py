"""The functional tests of a pair: what every matcher's partners do, computed once per feature and partner."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from sae_match.entries import Payload
from sae_match.evaluation.functional.contexts import Contexts, FunctionalTests, choose_contexts, parameter_hashes
from sae_match.evaluation.functional.effects import (
    FunctionalPair,
    ablation_check,
    deactivate,
    fingerprints,
    substitute,
)
from sae_match.evaluation.settings import PARTNERS
from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.matching import MatchedPair
from sae_match.keys import source_digest
from sae_match.language_model.interventions import next_token_divergence
from sae_match.matching.feature_pair import sae_facts
from sae_match.matching.problem import unit_rows
from sae_match.metrics.functional import NONE, PartnerEffects
from sae_match.metrics.metric import MetricRow, metric_rows
from sae_match.pairs import EXACT, Site
from sae_match.saes import SparseAutoencoder

logger = logging.getLogger(__name__)

KIND = "functional"
VERSION = 1
"""To be raised when the meaning of a stored effect changes."""
RANDOM_PARTNER, COACTIVE, HARD_NEGATIVE, MOST_AFFECTED = PARTNERS
"""Beside the matchers: any feature of B; one drawn by on how many tokens it fires together with the feature, and the
one with the most similar decoder row, neither of them the job's own partner; and the one that loses most activation."""

_CODE = [source_digest(FunctionalPair), source_digest(next_token_divergence)]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass
class FunctionalTester:
    """Runs the tests of the pairs of a job, and keeps what is computed in the store, feature by feature.

    Attributes:
        how: which tests, on how many features and contexts.
    """

    evaluator: Evaluator
    how: FunctionalTests
    progress: bool = False
    _contexts: dict[tuple[str, Site], Contexts] = field(default_factory=dict)

    def test(
        self, matched: MatchedPair, a: SparseAutoencoder, b: SparseAutoencoder
    ) -> tuple[list[MetricRow], pd.DataFrame]:
        """Every metric of every matcher of a pair, and a row per matcher and tested feature (functional.parquet)."""
        contexts = self._chosen(a, matched.pair.a)
        if len(contexts.features) == 0:
            logger.warning("%s: no feature fires in any context, and none is tested", matched.pair)
            return [], pd.DataFrame()
        found = _PairEffects(self, matched, self._tested(matched, a, b), contexts)
        rows = found.rows()
        table = pd.concat([found.table(variant) for variant in found.partners], ignore_index=True)
        logger.info(
            "%s: %d features tested; %d of %d fire on none of these tokens and cannot be",
            matched.pair, len(contexts.features), contexts.never_fires, a.width,
        )  # fmt: skip
        return rows, table

    def _chosen(self, a: SparseAutoencoder, site: Site) -> Contexts:
        key = (a.content_hash, site)
        if key not in self._contexts:
            inputs = self.evaluator.inputs
            how = self.how, inputs.batch_windows, inputs.sink_positions
            self._contexts = {key: choose_contexts(a, inputs.residual(site), *how)}
        return self._contexts[key]

    def _tested(self, matched: MatchedPair, a: SparseAutoencoder, b: SparseAutoencoder) -> FunctionalPair:
        inputs, layers = self.evaluator.inputs, matched.pair.blocks
        x_a, x_b = (inputs.residual(site) for site in (matched.pair.a, matched.pair.b))
        return FunctionalPair(
            inputs.models.of(matched.pair.b.source), a, b, layers, x_a, x_b, inputs.windows.ids,
            self.how.context_tokens, inputs.sink_positions, self.evaluator.units, inputs.batch_windows,
        )  # fmt: skip


class _PairEffects:
    """Effects of the tested features of one pair, and of all partners that any matcher gives them."""

    def __init__(
        self, tester: FunctionalTester, matched: MatchedPair, tested: FunctionalPair, contexts: Contexts
    ) -> None:
        self.tester, self.matched, self.tested, self.contexts = tester, matched, tested, contexts
        self.tests = tester.how.tests
        n, hidden = range(len(contexts.features)), not tester.progress
        self.removed = [self._removed(i) for i in tqdm(n, f"removing features, {matched.pair}", disable=hidden)]
        self.partners = self._all_partners()
        self.replaced: list[dict[int, tuple[Floats, Floats]]] = []
        if "substitution" in self.tests:
            bar = tqdm(n, f"substituting features, {matched.pair}", disable=hidden)
            self.replaced = [self._replaced(i) for i in bar]
        self.correlation = self._fingerprints() if "fingerprint" in self.tests else None

    # -- what is computed, or known from the store -----------------------------------------------------------

    def _key(self, what: str, **facts: object) -> dict[str, object]:
        tested, e = self.tested, self.tester.evaluator
        dtype = str(tested.model.hf.dtype).removeprefix("torch.")
        # In half precision even the batch changes the last bits.
        batch = None if dtype == "float32" else tested.batch_windows
        return {
            "version": VERSION, "code": _CODE, "what": what, "model": tested.model.key, "dtype": dtype, "batch": batch,
            "device": tested.a.device.type, "streams": e.inputs.stream(self.matched.pair.b).key,
            "layers": list(tested.layers),
            "saes": [sae_facts(tested.a), sae_facts(tested.b)], "sinks": tested.sink_positions, **facts,
        }  # fmt: skip

    def _of_feature(self, what: str, i: int) -> dict[str, object]:
        feature, windows = int(self.contexts.features[i]), self.contexts.windows[i].tolist()
        return self._key(what, feature=feature, windows=windows, tokens=self.tested.context_tokens)

    def _removed(self, i: int) -> Payload:
        feature, windows = int(self.contexts.features[i]), self.contexts.windows[i]
        return self._stored(self._of_feature("deactivation", i), lambda: deactivate(self.tested, feature, windows))

    def _stored(self, key: dict[str, object], compute: Callable[[], Mapping[str, object]]) -> Payload:
        """What is stored under a key, or what is computed and then stored; hundreds of entries, so none is logged."""
        store = self.tester.evaluator.store
        found = store.get(KIND, key)
        if found is None:
            store.put(KIND, key, compute())
            found = store.get(KIND, key)
            assert found is not None  # it was just written
        return found

    def _replaced(self, i: int) -> dict[int, tuple[Floats, Floats]]:
        """Divergences without a partner, and with the feature in its place, [contexts] each, by partner."""
        store, key = self.tester.evaluator.store, self._of_feature("substitution", i)
        key["units"] = None if self.tested.seeds else self.tested.units.value
        stored = store.get(KIND, key)
        known: dict[int, tuple[Floats, Floats]] = {}
        if stored is not None:
            known = {
                int(j): (stored["ablated"][at], stored["substituted"][at]) for at, j in enumerate(stored["partners"])
            }
        wanted = np.unique([partners[i] for partners in self.partners.values()])
        missing = np.array([j for j in wanted if j != NONE and int(j) not in known], np.int64)
        if len(missing):
            found = substitute(self.tested, int(self.contexts.features[i]), missing, self.contexts.windows[i])
            for at, j in enumerate(missing):
                known[int(j)] = found["ablated"][at].astype(float), found["substituted"][at].astype(float)
            partners = sorted(known)
            ablated, substituted = (np.stack([known[j][side] for j in partners]) for side in (0, 1))
            store.put(KIND, key, {"partners": np.array(partners), "ablated": ablated, "substituted": substituted})
        return known

    def _fingerprints(self) -> npt.NDArray[np.float32]:
        tested, features = self.tested, self.contexts.features
        windows, hidden = len(tested.ids), not self.tester.progress

        def compute() -> Mapping[str, object]:
            with tqdm(total=windows, desc=f"fingerprints, {self.matched.pair}", unit="window", disable=hidden) as bar:
                return {"correlation": fingerprints(tested, features, bar.update)}

        found = self._stored(self._key("fingerprint", features=features.tolist()), compute)
        correlation: npt.NDArray[np.float32] = found["correlation"]
        return correlation

    def _ablation_check(self, n: int) -> float:
        """Correlation of first-order effects on the loss with n true ones."""
        contexts = self.contexts
        chosen = np.linspace(0, len(contexts.features) - 1, n).round().astype(int)
        features, windows = contexts.features[chosen], [int(contexts.windows[i][0]) for i in chosen]

        def compute() -> Mapping[str, object]:
            estimated, true = ablation_check(self.tested, features, windows, np.random.default_rng(0))
            return {"estimated": estimated, "true": true}

        facts = {"features": features.tolist(), "windows": windows, "tokens": self.tested.context_tokens}
        found = self._stored(self._key("ablations", **facts), compute)
        return float(np.corrcoef(found["estimated"], found["true"])[0, 1])

    # -- partners --------------------------------------------------------------------------------------------

    def _all_partners(self) -> dict[str, Ints]:
        """Partners of the tested features, by matcher and further control; -1 = none."""
        features = self.contexts.features
        found = {name: one.indices.numpy()[features] for name, one in self.matched.permutations.items()}
        own = found[EXACT if EXACT in found else next(iter(found))]
        hashes = parameter_hashes(self.tested.b, self.tester.how.seed)
        order = np.argsort(hashes)  # by content, so that the order of B's features does not matter
        draws = {RANDOM_PARTNER: np.full(len(features), NONE), COACTIVE: np.full(len(features), NONE)}
        for i, removed in enumerate(self.removed):
            rng = self.contexts.rng(i)
            draws[RANDOM_PARTNER][i] = order[rng.integers(len(order))]
            columns, together = removed["columns"], removed["together"] * (removed["columns"] != own[i])
            if together.sum():
                by_content = np.argsort(hashes[columns])
                share = together[by_content] / together.sum()
                draws[COACTIVE][i] = columns[rng.choice(by_content, p=share)]
        found |= draws | {HARD_NEGATIVE: self._hard_negatives(own)}
        if self._deactivation:
            found[MOST_AFFECTED] = np.array([_most_affected(removed) for removed in self.removed], np.int64)
        return found

    def _hard_negatives(self, own: Ints) -> Ints:
        a, b = (unit_rows(sae.W_dec) for sae in (self.tested.a, self.tested.b))
        cosine = a[torch.as_tensor(self.contexts.features)] @ b.T
        rows = np.flatnonzero(own != NONE)
        cosine[torch.as_tensor(rows), torch.as_tensor(own[rows])] = -2.0
        # Where the job's own matching gives no partner, the most similar feature may well be the right one.
        return np.where(own == NONE, NONE, cosine.argmax(dim=1).cpu().numpy())

    @property
    def _deactivation(self) -> bool:
        return "deactivation" in self.tests and not self.tested.seeds

    # -- results ---------------------------------------------------------------------------------------------

    def rows(self) -> list[MetricRow]:
        """Rows of every metric and variant, and how well first-order effects estimate true ones."""
        e, layers = self.tester.evaluator, self.matched.pair.layers
        rows: list[MetricRow] = []
        for variant in self.partners:
            rows += metric_rows(e.metrics, self.effects(variant), e.bootstrap, layers, variant)
        reference = next(iter(self.partners))
        counts = {"tested_features": len(self.contexts.features), "never_firing_features": self.contexts.never_fires}
        rows += [MetricRow(*layers, reference, name, float(n), self.tested.a.width) for name, n in counts.items()]
        checked = min(self.tester.how.checked, len(self.contexts.features))
        if self.correlation is not None and checked > 2:  # of two points the correlation is 1 or -1
            check = self._ablation_check(checked)
            logger.info("%s: first-order effects correlate %.3f with true ablations", self.matched.pair, check)
            rows.append(MetricRow(*layers, reference, "fingerprint_check", check, checked))
        return rows

    def effects(self, variant: str) -> PartnerEffects:
        """What the partners of one variant do."""
        contexts, partners = self.contexts, self.partners[variant]
        lengths = [len(windows) for windows in contexts.windows]
        permutation = self.matched.permutations.get(variant)
        clean = ablated = rank = kl_ablated = kl_substituted = None
        if self._deactivation:
            clean, ablated = (self._activation(name, partners) for name in ("clean", "ablated"))
            rank = np.array([_rank(one, int(j), self.tested.b.width) for one, j in zip(self.removed, partners)])  # noqa: B905
        if self.replaced:
            sides = [
                known.get(int(j), (np.zeros(length), np.zeros(length)))
                for known, j, length in zip(self.replaced, partners, lengths, strict=True)
            ]
            kl_ablated, kl_substituted = (np.concatenate([one[side] for one in sides]) for side in (0, 1))
        fingerprint, fingerprint_rank = self._fingerprint_of(partners)
        confidence = self.matched.confidence.get(variant)
        return PartnerEffects(
            partner=partners,
            quartile=contexts.quartile,
            context=np.repeat(np.arange(len(lengths)), lengths),
            document=self.tester.evaluator.inputs.windows.document.numpy()[np.concatenate(contexts.windows)],
            matched=None if permutation is None else len(permutation.matched),
            width=None if permutation is None else permutation.n_a,
            clean=clean,
            ablated=ablated,
            rank=rank,
            kl_ablated=kl_ablated,
            kl_substituted=kl_substituted,
            fingerprint=fingerprint,
            fingerprint_rank=fingerprint_rank,
            confidence=None if confidence is None else confidence.numpy()[contexts.features],
        )

    def table(self, variant: str) -> pd.DataFrame:
        """Rows of functional.parquet: one per tested feature."""
        effects, contexts, pair = self.effects(variant), self.contexts, self.matched.pair
        n, ones = len(contexts.features), np.ones((1, len(effects.context)))
        a, b = (unit_rows(sae.W_dec.cpu()) for sae in (self.tested.a, self.tested.b))
        partner = effects.partner
        cosine = (a[torch.as_tensor(contexts.features)] * b[torch.as_tensor(partner.clip(min=0))]).sum(dim=1).numpy()
        table: dict[str, object] = {
            "layer": pair.layers[0],
            "layer_to": pair.layers[1],
            "role": pair.role.value,
            "variant": variant,
            "feature": contexts.features,
            "partner": partner,
            "quartile": contexts.quartile,
            "firing_rate": contexts.firing_rate,
            "contexts": np.bincount(effects.context, minlength=n),
            "confidence": np.full(n, np.nan) if effects.confidence is None else effects.confidence,
            "decoder_cosine": np.where(partner == NONE, np.nan, cosine),
        }
        if effects.clean is not None:
            table |= {"drop": effects.drops, "silent": effects.silent, "rank": effects.rank}
        if effects.kl_ablated is not None and effects.kl_substituted is not None:
            table |= {
                "kl_ablated": effects.per_feature(ones, effects.kl_ablated)[0],
                "kl_substituted": effects.per_feature(ones, effects.kl_substituted)[0],
            }
        if effects.fingerprint is not None:
            table |= {"fingerprint": effects.fingerprint, "fingerprint_rank": effects.fingerprint_rank}
        return pd.DataFrame(table)

    def _activation(self, name: str, partners: Ints) -> Floats:
        """[C] activation of each feature's partner in its contexts."""
        found = []
        for removed, j in zip(self.removed, partners, strict=True):
            at = np.flatnonzero(removed["columns"] == j)
            found.append(removed[name][:, at].sum(axis=1, dtype=np.float64))
        return np.concatenate(found)

    def _fingerprint_of(self, partners: Ints) -> tuple[Floats | None, Ints | None]:
        if self.correlation is None:
            return None, None
        own = np.take_along_axis(self.correlation, partners.clip(min=0)[:, None], axis=1)
        rank = 1 + (self.correlation > own).sum(axis=1)
        none = partners == NONE
        return np.where(none, 0.0, own[:, 0].astype(float)), np.where(none, 0, rank)


def _lost(removed: Payload) -> Floats:
    return np.asarray((removed["clean"].astype(np.float64) - removed["ablated"]).sum(axis=0))


def _most_affected(removed: Payload) -> int:
    lost = _lost(removed)
    return int(removed["columns"][lost.argmax()]) if len(lost) and lost.max() > 0 else NONE


def _rank(removed: Payload, partner: int, width: int) -> int:
    """1 + the number of features of B that lose more activation; those outside `columns` lose nothing.

    A partner that loses nothing comes after all that lose nothing either.
    """
    if partner == NONE:
        return 0
    lost = np.zeros(width)
    lost[removed["columns"]] = _lost(removed)
    own = lost[partner]
    return 1 + int((lost > own).sum()) if own > 0 else int((lost >= own).sum())
