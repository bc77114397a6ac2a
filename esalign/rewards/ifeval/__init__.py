"""Instruction following: which of a prompt's checkable instructions a completion follows, as IFEval judges them."""

from esalign.rewards.ifeval.reward import PRELOAD, IfEval, followed, read_column

__all__ = ["PRELOAD", "IfEval", "followed", "read_column"]
