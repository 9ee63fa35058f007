"""Datasets of images, and how image files are found and decoded."""
