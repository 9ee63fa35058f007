"""Datasets of text and their views: files, vocabulary and token store."""
