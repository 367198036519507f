"""What several families share, in the two halves of a family: spec (no torch) and module."""
