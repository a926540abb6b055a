"""Models that transformers does not have, in its style."""
