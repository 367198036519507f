"""Coarse mixture of experts: a softmax gate, two of many small SwiGLU experts."""
