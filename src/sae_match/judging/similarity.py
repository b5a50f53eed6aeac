"""What features are compared by where they have explanations in words: the cosine of TF-IDF vectors of their terms."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import field_validator
from scipy.sparse import csr_array
from torch import Tensor

from sae_match.errors import UserError
from sae_match.hub import content_hash
from sae_match.judging.descriptions import explained, explanation_files, read_explanations
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.similarity import Similarity
from sae_match.options import option

logger = logging.getLogger(__name__)

BLOCK_ROWS = 256
"""Rows of A that are multiplied at a time: most pairs share a common word, so a sparse product is as large as a dense
one."""
Terms = Mapping[int, Mapping[str, int]]
"""How often each term occurs in a feature's explanation, by feature; features without terms are missing."""


@option
class DescriptionSimilarity(Similarity):
    """Cosine of the TF-IDF vectors of two features' explanations, from Neuronpedia's files; reads neither weights nor
    text.

    A feature without an explanation, or without a term in it, has similarity 0 to all.
    """

    by_layer: ClassVar[bool] = True
    reads_folding: ClassVar[bool] = False
    name: str = "descriptions"
    folder: str
    """Folder of Neuronpedia explanations (batch-N.jsonl or .jsonl.gz) with {layer} in it."""

    @field_validator("folder", mode="before")
    @classmethod
    def _has_a_layer(cls, folder: object) -> object:
        if folder is None or "{layer}" not in str(folder):
            raise ValueError("give the folder of explanations, with {layer} in it: judging.neuronpedia=FOLDER")
        return folder

    def files(self, layer: int) -> list[Path]:
        """The batch files of a layer."""
        return explanation_files(self.folder, layer, self._key)

    def matrix(self, pair: FeaturePair) -> Float[Tensor, "K_a K_b"]:
        """Cosines of the features that are matched; terms are weighted by the explanations of both whole layers.

        Raises:
            UserError: a layer without explanations, files that cannot be read or belong to other SAEs, or two SAEs of
                one layer, which have the same explanations.
        """
        if pair.layers[0] == pair.layers[1]:
            raise UserError(f"{self.name}: explanations of layer {pair.layers[0]} tell nothing of a second SAE there")
        sides = [self._terms(layer, sae.width) for layer, sae in zip(pair.layers, (pair.a, pair.b), strict=True)]
        kept_a, kept_b = (kept.tolist() for kept in pair.kept())
        rows_a, rows_b = tf_idf(sides, (kept_a, kept_b))
        out = torch.empty(len(kept_a), len(kept_b))
        for low in range(0, len(kept_a), BLOCK_ROWS):
            block = (rows_a[low : low + BLOCK_ROWS] @ rows_b.T).toarray()
            out[low : low + BLOCK_ROWS] = torch.from_numpy(block)
        return out

    def reads(self, pair: FeaturePair) -> dict[str, object]:
        """The explanations' content, and which SAEs and layers they are of."""
        return {
            "layers": list(pair.layers),
            "saes": [sae.content_hash for sae in (pair.a, pair.b)],
            "explanations": [[content_hash(path) for path in self.files(layer)] for layer in pair.layers],
        }

    @property
    def _key(self) -> str:
        return f"folder of {self.name}"

    def _terms(self, layer: int, width: int) -> Terms:
        texts = read_explanations(self.folder, layer, width, self._key)
        terms = {feature: explained(text, len(text)).terms for feature, text in texts.items()}
        found = {feature: counts for feature, counts in terms.items() if counts}
        if not found:
            folder = self.folder.replace("{layer}", str(layer))
            raise UserError(f"{self._key}: {folder} holds no explanation in words of any feature of layer {layer}")
        logger.info(
            "%s: %d of %d features of layer %d have no explanation, and similarity 0 to all",
            self.name, width - len(found), width, layer,
        )  # fmt: skip
        return found


def tf_idf(sides: Sequence[Terms], features: Sequence[Iterable[int]]) -> list[csr_array]:
    """TF-IDF vectors of unit norm, [features, terms], float32, of each side; 0 where a feature has no terms.

    tf is the term's count; idf = 1 + ln((1 + n) / (1 + df)), of all n explanations of all sides, of which df hold the
    term (scikit-learn's `TfidfVectorizer` as it is by default).

    Args:
        features: whose vectors are made, by side.
    """
    documents = Counter(term for side in sides for counts in side.values() for term in counts)
    n = sum(len(side) for side in sides)
    column = {term: number for number, term in enumerate(documents)}
    idf = {term: 1 + float(np.log((1 + n) / (1 + df))) for term, df in documents.items()}
    found: list[csr_array] = []
    for side, wanted in zip(sides, features, strict=True):
        values: list[float] = []
        columns: list[int] = []
        ends = [0]
        for feature in wanted:
            weights = {term: count * idf[term] for term, count in side.get(feature, {}).items()}
            norm = float(np.linalg.norm(list(weights.values())))
            values += [weight / norm for weight in weights.values()]
            columns += [column[term] for term in weights]
            ends.append(len(values))
        shape = (len(ends) - 1, len(column))
        found.append(csr_array((np.array(values, dtype=np.float32), np.array(columns, dtype=np.int64), ends), shape))
    return found
