"""Data sets, label corruption, models and training for the experiments."""
