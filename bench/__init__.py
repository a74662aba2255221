"""Measures Rowmill against what its users would use instead: five figures, each a ratio of two rates of one run."""
