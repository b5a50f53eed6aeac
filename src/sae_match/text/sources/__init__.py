"""Where documents come from: one file per kind of source."""

from __future__ import annotations

from sae_match.config.schema import DatasetConfig, DatasetSource
from sae_match.text.documents import Source
from sae_match.text.sources.embedded import open_embedded
from sae_match.text.sources.hub import open_hub
from sae_match.text.sources.local import open_local


def open_source(cfg: DatasetConfig) -> Source:
    """Open the source that `cfg` names; nothing is read yet beyond what identifies its content.

    Raises UserError where the source is missing or the configuration does not fit it.
    """
    source = DatasetSource(cfg.source)
    if source is DatasetSource.hub:
        return open_hub(cfg)
    if source is DatasetSource.local:
        return open_local(cfg)
    return open_embedded(source)
