"""Numbers from activations and scores: ablation curves and their areas."""
