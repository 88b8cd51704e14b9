"""The figures of Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for
generalization" (arXiv 1803.06959)."""
