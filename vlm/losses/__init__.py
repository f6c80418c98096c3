"""Losses: pure functions of named tensors. Each returns a value whose mean over ranks is the global loss."""

from vlm.losses.contrastive import InfoNce, info_nce

__all__ = ["InfoNce", "info_nce"]
