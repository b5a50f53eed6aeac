"""Models, texts and residual streams by the names of the configuration's options, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import yaml
from jaxtyping import Float
from pydantic import ValidationError

from sae_match.arrays import Array, as_tensor
from sae_match.errors import UserError
from sae_match.files import config_directory
from sae_match.options import what_is_wrong
from sae_match.saes import SparseAutoencoder

if TYPE_CHECKING:
    import pandas as pd

    from sae_match.evaluation import PairEvaluation, PairSettings
    from sae_match.language_model import LanguageModel, ResidualStreams
    from sae_match.language_model.sources import ModelSource
    from sae_match.matching import Permutation
    from sae_match.text import TokenWindows
    from sae_match.text.source import TextSource


def load_language_model(
    model: str | ModelSource, device: str = "auto", cache_dir: str | Path = "", **changes: Any
) -> LanguageModel:
    """A language model by the name of its option (`smollm2_135m`, `gemma_2_2b`, ...), or from a source object.

    Args:
        device: auto (cuda where there is one), cpu or cuda.
        cache_dir: as `paths.cache_dir`; empty = SAE_MATCH_CACHE or ~/.cache/sae_match.
        changes: keys of the option: `load_language_model("local", path=DIR)`.

    Raises:
        UserError: unknown name or key, or a model that cannot be loaded.
    """
    from sae_match.language_model import load_language_model as load
    from sae_match.store import Store

    source = option("model", model, **changes) if isinstance(model, str) else model
    return load(source, device, Store(cache_dir))


def load_text(text: str | TextSource, model: LanguageModel, cache_dir: str | Path = "", **changes: Any) -> TokenWindows:
    """A text by the name of its option (`wiki`, `openwebtext`, ...) or from a source object, cut into token windows.

    Args:
        model: whose tokenizer cuts it, with BOS as that model's option has it.
        changes: keys of the option: `load_text("wiki", model, documents=8)`.

    Raises:
        UserError: unknown name or key, or a text that cannot be read.
    """
    from sae_match.store import Store
    from sae_match.text import load_windows

    source = option("dataset", text, **changes) if isinstance(text, str) else text
    return load_windows(source, model.tokenizer, Store(cache_dir), model.bos)


def residual_streams(
    model: LanguageModel,
    windows: TokenWindows,
    layers: Iterable[int],
    cache_dir: str | Path = "",
    *,
    batch_windows: int = 8,
    progress: bool = False,
) -> ResidualStreams:
    """Residual streams after these blocks: `.layer(13)` is [windows, tokens, d], memory-mapped; captured once.

    Raises:
        UserError: a layer that the model does not have, or too little disk.
    """
    from sae_match.language_model import capture
    from sae_match.store import Store

    return capture(model, windows, list(layers), Store(cache_dir), batch_windows, progress)


def evaluate_on_text(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutations: Permutation | dict[str, Permutation],
    model: LanguageModel,
    windows: TokenWindows,
    layers: tuple[int, int],
    cache_dir: str | Path = "",
    settings: PairSettings | None = None,
) -> PairEvaluation:
    """`evaluate_pair` on a model's residual streams, without its sink positions, with intervals over documents.

    Args:
        a, b: SAEs of these two layers.
        settings: as of `evaluate_pair`; `sink_positions` is the model's.

    Raises:
        UserError: as `residual_streams` and `evaluate_pair`.
    """
    from sae_match.evaluation import PairSettings, evaluate_pair

    streams = residual_streams(model, windows, layers, cache_dir)
    how = replace(settings or PairSettings(), sink_positions=model.sink_positions)
    x_a, x_b = (streams.layer(layer) for layer in layers)
    return evaluate_pair(a, b, permutations, x_a, x_b, windows.document, layers=layers, settings=how)


def top_tokens(
    sae: SparseAutoencoder,
    x: Float[Array, "windows tokens d"],
    windows: TokenWindows,
    model: LanguageModel,
    features: Sequence[int],
    k: int = 8,
    context: int = 8,
) -> pd.DataFrame:
    """Where features fire most: at most one row per window, the largest activation first.

    Columns: `feature`, `activation`, `token`, and the text `before` and `after` it (up to `context` tokens each).

    Args:
        x: resid_post of the SAE's layer on these windows; the model's sink positions are left out.

    Raises:
        UserError: the SAE cannot encode, reads another width, or has no such feature.
    """
    import pandas as pd

    from sae_match.evaluation.top_activations import top_activations
    from sae_match.text.tokenization import decode_tokens

    if wrong := [feature for feature in features if not 0 <= feature < sae.width]:
        raise UserError(f"features {wrong}: the SAE has features 0..{sae.width - 1}")
    top = top_activations(sae, as_tensor(x), k, sink_positions=model.sink_positions)

    def text(window: int, start: int, end: int) -> str:
        ids = windows.ids[window, max(start, 0) : end].tolist()
        return decode_tokens(model.tokenizer, ids)

    rows = [
        {
            "feature": feature,
            "activation": float(top.value[feature, place]),
            "token": text(window, position, position + 1),
            "before": text(window, position - context, position),
            "after": text(window, position + 1, position + 1 + context),
        }
        for feature in features
        for place, (window, position) in enumerate(top.places(feature))
    ]
    return pd.DataFrame(rows, columns=["feature", "activation", "token", "before", "after"])


def option(group: str, name: str, **changes: Any) -> Any:
    """The object of an option file: `option("model", "hub", repo_id="gpt2")`.

    Args:
        changes: values in place of the file's.

    Raises:
        UserError: there is no such option, or a value is missing, unknown or wrong.
    """
    folder = config_directory() / group
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        meant = "".join(f" (did you mean {other}?)" for other in get_close_matches(name, names, n=1))
        raise UserError(f"{group}={name}: must be one of {', '.join(names)}{meant}")
    values = _values(folder, name) | changes
    if missing := [key for key, value in values.items() if value == "???" or "${" in str(value)]:
        raise UserError(f"{group}={name}: set {', '.join(missing)}")
    try:
        return resolve_name(values.pop("_target_"))(**values)
    except ValidationError as error:
        raise UserError(f"{group}={name}: {what_is_wrong(error)}") from error


def _values(folder: Path, name: str) -> dict[str, Any]:
    """An option file laid over the files of the group that it begins from."""
    content = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    bases = [base for base in content.pop("defaults", []) if base != "_self_"]
    values: dict[str, Any] = {}
    for base in bases:
        values |= _values(folder, base)
    return values | content
