"""The figures of Morcos, Raghu, Bengio 2018, "Insights on representational similarity in neural networks with canonical
correlation" (arXiv 1806.05759)."""
