"""Loads and saves weights under this project's names, timm's or Hugging Face's.

Each foreign layout has one file with its table of names and the shapes of its tensors.
"""

from quadriga.weights.load import Layout, export_weights, load_tensors, load_weights
from quadriga.weights.report import Remedies, WeightReport

__all__ = ["Layout", "Remedies", "WeightReport", "export_weights", "load_tensors", "load_weights"]
