"""Experiments: recipes, presets, training by stages, comparisons, and the state of a run."""
