"""Datasets of text and their views: files, vocabulary, token store."""
