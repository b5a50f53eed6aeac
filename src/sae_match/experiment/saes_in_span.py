"""Reading the SAEs of a span: everything is checked before long work, then at most a few are held at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tqdm import tqdm

from sae_match.config.schema import Config
from sae_match.errors import UserError
from sae_match.experiment.estimates import problem_width
from sae_match.matching.solution import Solver
from sae_match.saes import SaeSource, SparseAutoencoder


@dataclass(frozen=True)
class SaeFacts:
    """What the preflight keeps of an SAE."""

    d_model: int
    width: int
    content_hash: str
    mean_threshold: float


class SpanSaes:
    """The SAEs of layers first..last, loaded on demand and kept two at a time.

    Args:
        cfg: the job's configuration.
        device: where loaded SAEs are put.
    """

    def __init__(self, cfg: Config, device: str) -> None:
        self.cfg, self.device = cfg, device
        self.layers = list(range(cfg.layers.first, cfg.layers.last + 1))
        self.source = SaeSource(cfg.sae)
        self.facts: dict[int, SaeFacts] = {}
        self._held: OrderedDict[int, SparseAutoencoder] = OrderedDict()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Adjacent pairs (t, t+1) of the span."""
        return list(zip(self.layers[:-1], self.layers[1:], strict=True))

    def preflight(self, solver: Solver, progress: bool) -> None:
        """Locate and read every SAE once, so that a bad file is found before hours of work.

        Raises:
            UserError: missing or invalid files, SAEs over different residual streams or another model than
                configured, or a problem that does not fit into memory.
        """
        self.source.locate(self.layers)
        for layer in tqdm(self.layers, desc="checking SAEs", disable=not progress):
            sae = self.source.load(layer)
            self.facts[layer] = SaeFacts(sae.d_model, sae.width, sae.content_hash, float(sae.threshold.mean()))
            self._check_ceiling(layer, self.source.load_ceiling(layer), solver)
        check_one_stream({layer: facts.d_model for layer, facts in self.facts.items()})
        d_model = self.facts[self.layers[0]].d_model
        for a, b in self.pairs:
            check_pair(self.cfg, solver, self.facts[a].width, self.facts[b].width, d_model)

    def check_model(self, d_model: int, name: str) -> None:
        """Refuse a model whose residual stream is not the one the SAEs read.

        Raises:
            UserError: different d_model.
        """
        check_same_stream(self.cfg.sae.name, self.facts[self.layers[0]].d_model, name, d_model)

    def load(self, layer: int) -> SparseAutoencoder:
        """The SAE of one layer on the job's device."""
        if layer not in self._held:
            # Before reading: a third SAE would otherwise be in memory while the oldest is still held.
            while len(self._held) > 1:
                self._held.popitem(last=False)
            self._held[layer] = self.source.load(layer).to(self.device)
        self._held.move_to_end(layer)
        return self._held[layer]

    def load_ceiling(self, layer: int) -> SparseAutoencoder | None:
        """A second seed of one layer, if the configuration names one that exists."""
        sae = self.source.load_ceiling(layer)
        return None if sae is None else sae.to(self.device)

    def _check_ceiling(self, layer: int, second: SparseAutoencoder | None, solver: Solver) -> None:
        """Refuse a second seed that is not one: the same SAE would make a perfect ceiling."""
        if second is None:
            return
        own = self.facts[layer]
        if second.d_model != own.d_model:
            raise UserError(f"{second.source}: d_model {second.d_model}, but layer {layer}'s SAE reads {own.d_model}")
        if second.content_hash == own.content_hash:
            raise UserError(f"{second.source}: the same SAE as layer {layer}'s own, so it is no second seed")
        check_pair(self.cfg, solver, own.width, second.width, own.d_model)


def check_one_stream(d_models: dict[int, int]) -> None:
    """Refuse SAEs of different models in one span.

    Args:
        d_models: by layer.

    Raises:
        UserError: they differ.
    """
    first = min(d_models)
    for layer, d_model in d_models.items():
        if d_model != d_models[first]:
            raise UserError(
                f"layer {layer} reads d_model={d_model}, layer {first} {d_models[first]}: "
                "these SAEs do not belong to one model"
            )


def check_same_stream(sae: str, d_sae: int, model: str, d_model: int) -> None:
    """Refuse a model whose residual stream is not the one the SAEs read.

    Raises:
        UserError: different d_model.
    """
    if d_sae != d_model:
        raise UserError(
            f"the SAEs {sae} read d_model={d_sae}, but the model {model} has d_model={d_model}: "
            "choose the model that the SAEs were trained on (model=...), or evaluation=weights_only"
        )


def check_pair(cfg: Config, solver: Solver, width_a: int, width_b: int, d_model: int) -> None:
    """Refuse a pair that the solver has no memory for.

    Raises:
        UserError: from the solver.
    """
    solver.check_memory(width_a, width_b, problem_width(cfg.matching.metric, d_model))
