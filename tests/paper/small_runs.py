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

# Of fig5b, 6, 7 and A1 to A4; networks of 88 feature maps, with batch norm or without.
CONVNETS = {"examples": 100, "shape": {"width": 1 / 32}, "epochs": 2, "repeats": 2}

# Of fig3a and fig3b.
FIG3 = {
    "examples": 60,
    "shape": {"width": 1 / 32},
    "epochs": 2,
    "repeats": 2,
    "learning_rates": [1e-4, 1e-3, 1e-2, 3e-2],
    "orders": 2,
    "points": 5,
    "extremes": 2,
}

FIG4C = {
    "examples": 60,
    "shape": {"width": 1 / 32},
    "epochs": 2,
    "repeats": 2,
    "learning_rates": [1e-3, 1e-2, 3e-2],
    "batch_sizes": [20, 60],
    "orders": 2,
    "points": 5,
    "draws": 50,
}
