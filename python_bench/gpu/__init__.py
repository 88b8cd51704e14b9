"""What only a GPU can tell; ``python -m python_bench.gpu --out DIR`` runs it all."""
