"""The decoder-only transformer that every family's feed-forward is put into."""

from isoflop.model.loss import next_token_loss
from isoflop.model.transformer import Transformer, build_model

__all__ = ["Transformer", "build_model", "next_token_loss"]
