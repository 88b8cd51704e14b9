"""How alike two representations are: canonical correlations, and what is made of them."""
