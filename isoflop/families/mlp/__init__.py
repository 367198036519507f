"""Dense feed-forward with gelu: two matrices."""
