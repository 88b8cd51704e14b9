"""The papers' figures, one recipe each."""

from sdkernels.analysis.extras import require

for package in ("matplotlib", "pandas", "scipy"):
    require(package, "sdkernels.paper")
