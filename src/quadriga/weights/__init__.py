"""Weights to and from files, under this project's names, timm's or Hugging Face's.

One file per foreign layout: its table of names, and what its tensors look like.
"""

from quadriga.weights.load import Layout, export_weights, load_tensors, load_weights
from quadriga.weights.report import Remedies, WeightReport

__all__ = ["Layout", "Remedies", "WeightReport", "export_weights", "load_tensors", "load_weights"]
