"""What changes over a run besides the weights: the sparsity coefficient and the learning rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass
class SparsityController:
    """Steers the coefficient of the L0 penalty so that the running mean of L0 reaches its target.

    Each step multiplies the coefficient by `exp(gain * clip(2 * (running / target - 1), -1, 1))`: proportional
    near the target, at most `gain` per step far from it. `smoothing` is the weight of the past in the running mean.
    """

    target: float
    gain: float
    smoothing: float = 0.9
    coefficient: float = 0.0
    running_l0: float = 0.0

    def start(self, coefficient: float) -> None:
        """Begin steering from `coefficient` (squared activation units per active feature), at the target."""
        self.coefficient, self.running_l0 = coefficient, self.target

    def update(self, l0: float) -> None:
        """Take in the mean L0 of one batch."""
        self.running_l0 = self.smoothing * self.running_l0 + (1 - self.smoothing) * l0
        excess = 2.0 * (self.running_l0 / self.target - 1.0)
        self.coefficient *= math.exp(self.gain * min(1.0, max(-1.0, excess)))

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where `state_dict` was taken."""
        self.coefficient, self.running_l0 = state["coefficient"], state["running_l0"]


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Multiplier of the learning rate at `step` (0-based): linear warm-up, plateau, linear decay to zero."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    decay_steps = decay_fraction * total_steps
    decay = min(1.0, (total_steps - step) / decay_steps) if decay_steps > 0 else 1.0
    return max(0.0, warmup * decay)
