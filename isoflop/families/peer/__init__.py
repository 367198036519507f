"""PEER: single-neuron gelu experts in one shared table, product-key routing per channel."""
