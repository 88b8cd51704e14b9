"""The papers' figures, one recipe each."""
