"""docs/units.md: its example runs as it stands, on the embedded digits, and says what the page says."""

import re
import subprocess
import sys
from pathlib import Path

import sdkernels

PAGE = Path(sdkernels.__file__).parent.parent / "docs" / "units.md"


def test_the_example_runs_when_pasted(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = done.stdout
    assert printed.count("Spearman's rank correlation of cross-entropy gained (nats) and ") == 5
    rho = dict(re.findall(r" and (.*)\n(?:.*\n)*?pooled +(-?\d\.\d+)", printed))
    assert float(rho["Taylor importance (nats)"]) > 0.6  # what it estimates
    up, down, within = map(float, re.search(r"under the curve: tensor\(\[(.*), (.*), (.*)\]", printed).groups())
    assert down < min(up, within) - 0.05, "units that matter on one half matter on the other"
    synergies = list(map(float, re.findall(r"synergy (\S+) nats", printed)))
    assert synergies == sorted(synergies, reverse=True)
    assert synergies[-1] > 0
    before, after = map(float, re.search(r"mean selectivity: (\S+) then (\S+)", printed).groups())
    assert after < before - 0.05


def test_pictures_are_there():
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", PAGE.read_text())
    assert len(pictures) == 4
    assert all((PAGE.parent / picture).stat().st_size > 1000 for picture in pictures)
