"""Recipes: plain functions that return one frozen `RunConfig`."""
