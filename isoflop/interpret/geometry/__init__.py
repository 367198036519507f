"""Gate patterns as vectors: what lies near what, and whether that is more than the token itself."""
