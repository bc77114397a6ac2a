"""Verifiable rewards: built in, or the user's own, scored in processes beside generation."""

from esalign.rewards.audit import audit
from esalign.rewards.load import Reward, TrainerState, load_reward
from esalign.rewards.pool import RewardPool, Scores
from esalign.rewards.preview import Preview, preview

__all__ = ["Preview", "Reward", "RewardPool", "Scores", "TrainerState", "audit", "load_reward", "preview"]
