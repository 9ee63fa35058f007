"""What datasets of every sort share: subsets, and pickles read without running code."""
