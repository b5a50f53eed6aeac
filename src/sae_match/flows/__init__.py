"""The flow graph: which feature of a layer continues which of the layer before, and where features split, merge, are
born and die. `flow` finds it, `Flow` holds it, saves it and exports it."""

from sae_match.flows.find import flow
from sae_match.flows.graph import Flow

__all__ = ["Flow", "flow"]
