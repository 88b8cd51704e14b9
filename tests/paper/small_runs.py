"""Recipes at a scale of seconds."""

FIG1A = {
    "examples": 80,
    "shape": {"hidden": [24, 24]},
    "levels": [0.0, 1.0],
    "epochs": 300,
    "learning_rate": 1e-2,
    "repeats": 2,
    "together": 4,
    "orders": 3,
    "points": 9,
}
