"""The recipes, by the figures' names."""

from typing import Any

from sdkernels.paper.directions import (
    fig1,
    fig2,
    fig3,
    fig4_early_stopping,
    fig4_selection,
    fig5_batch_norm,
    fig5_dropout,
    fig6,
    fig7,
    figA1,
    figA2,
    figA3,
)
from sdkernels.paper.recipe import Recipe
from sdkernels.paper.representations import cca1, cca2, cca3, cca4, cca5, cca6, ccaA3

DIRECTIONS = "On the importance of single directions for generalization"
REPRESENTATIONS = "Insights on representational similarity in neural networks with canonical correlation"

PAPERS: dict[str, tuple[Recipe[Any], ...]] = {
    DIRECTIONS: (
        *(fig1.FIG1A, fig1.FIG1B, fig1.FIG1C),
        *(fig2.FIG2A, fig2.FIG2B),
        *(fig3.FIG3A, fig3.FIG3B),
        *(fig4_early_stopping.FIG4A, fig4_early_stopping.FIG4B, fig4_selection.FIG4C),
        *(fig5_dropout.FIG5A, fig5_batch_norm.FIG5B),
        *(fig6.FIG6A, fig6.FIG6B),
        fig7.FIG7,
        figA1.FIGA1,
        *(figA2.FIGA2, figA3.FIGA3, fig7.FIGA4),
    ),
    REPRESENTATIONS: (cca1.CCA1, cca2.CCA2, cca3.CCA3, cca4.CCA4, cca5.CCA5, cca6.CCA6, ccaA3.CCAA3),
}

RECIPES: dict[str, Recipe[Any]] = {recipe.name: recipe for recipes in PAPERS.values() for recipe in recipes}
