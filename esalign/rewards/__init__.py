"""Verifiable rewards: built in, or the user's own, scored in processes beside generation."""

from esalign.rewards.audit import audit
from esalign.rewards.load import Reward, TrainerState, load_reward
from esalign.rewards.pool import RewardPool, Scores

__all__ = ["Reward", "RewardPool", "Scores", "TrainerState", "audit", "load_reward"]
