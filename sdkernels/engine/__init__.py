"""A model + a family of ablations -> scores, without running the network once per ablation."""
