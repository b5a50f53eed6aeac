"""Judging: descriptions of features, and judges that say whether two of them mean the same.

Knows no Hydra and no W&B, and of SAEs only the indices of their features.
"""

from sae_match.judging.judge import Judge, Question, judge_all
from sae_match.judging.levels import Answer, Judgement, Level, Outcome

__all__ = ["Answer", "Judge", "Judgement", "Level", "Outcome", "Question", "judge_all"]
