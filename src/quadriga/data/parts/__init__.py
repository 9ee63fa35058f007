"""Code for datasets of every kind: mixtures, subsets, and pickles read without running code."""
