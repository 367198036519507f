"""sgatlin: sparsely gated tiny linear experts, one table per channel."""
