"""Judging: descriptions of features, and judges that say whether two of them mean the same.

Knows of SAEs only the indices of their features.
"""

from sae_match.judging.judge import Answer, Judge, Judgement, Judging, Level, Outcome, Question, judge_all

__all__ = ["Answer", "Judge", "Judgement", "Judging", "Level", "Outcome", "Question", "judge_all"]
