"""What a model's config.json says about it, read before any weights are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoConfig

from sae_match.config.schema import ModelConfig, ModelSource
from sae_match.errors import UserError
from sae_match.hub import explained, is_offline
from sae_match.language_model.files import model_repository, small_files
from sae_match.store import Store


@dataclass(frozen=True)
class ModelFacts:
    """The shape of a language model.

    Attributes:
        architecture: transformers class, such as Gemma2ForCausalLM.
        n_layers: number of blocks.
        d_model: width of the residual stream.
        context: longest window in tokens, or None where positions have no limit.
        vocabulary: number of token ids.
    """

    architecture: str
    n_layers: int
    d_model: int
    context: int | None
    vocabulary: int


def model_facts(cfg: ModelConfig, store: Store) -> ModelFacts:
    """The facts of the model that `cfg` names; of a hub model only the small files are downloaded.

    Raises:
        UserError: the source is missing, gated or unreachable, config.json is unreadable or describes no language
            model, or the configuration states another n_layers or d_model.
    """
    return read_facts(cfg, small_files(cfg, store))


def read_facts(cfg: ModelConfig, directory: Path, where: str | None = None) -> ModelFacts:
    """The facts in a directory that holds at least the model's config.json.

    Args:
        where: how messages name that file; its path if None.

    Raises:
        UserError: config.json is unreadable or describes no language model, or the configuration states another
            n_layers or d_model.
    """
    where = where or str(directory / "config.json")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config(decoder=True)
        facts = ModelFacts(
            architecture=(config.architectures or [config.model_type])[0],
            n_layers=int(text.num_hidden_layers),
            d_model=int(text.hidden_size),
            context=getattr(text, "max_position_embeddings", None),
            vocabulary=int(text.vocab_size),
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"model {cfg.name}: {where} describes no language model that transformers knows.\n"
            f"{type(error).__name__}: {error}"
        ) from error
    for name in ("n_layers", "d_model"):
        stated, found = getattr(cfg, name), getattr(facts, name)
        if stated is not None and stated != found:
            raise UserError(
                f"model.{name}={stated}, but {where} says {found}: correct it, or set it to null "
                "to take it from the model"
            )
    return facts


def is_gated(cfg: ModelConfig) -> bool | None:
    """Whether the hub asks for a licence before it hands out the model; None where the hub cannot be asked.

    Raises:
        UserError: the repository does not exist, or the hub refuses to say.
    """
    if cfg.source is not ModelSource.hub:
        return False
    repository = model_repository(cfg)
    if is_offline():
        return None
    with explained(repository):
        return bool(HfApi().model_info(repository.repo_id, revision=cfg.revision).gated)
