"""Gated dense feed-forward, the clamped SwiGLU of GPT-OSS."""
