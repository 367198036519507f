"""Corpora, tokenizers, token shards and the order in which training reads them.

Nothing is imported here: planning needs only :mod:`isoflop.data.catalog`, which loads neither
numpy nor torch.
"""
