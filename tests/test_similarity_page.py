"""docs/similarity.md: its example runs as it stands, on the embedded digits, and says what the page says."""

import re
import subprocess
import sys
from pathlib import Path

import sdkernels

PAGE = Path(sdkernels.__file__).parent.parent / "docs" / "similarity.md"
NUMBER = r"(\d\.\d+)"


def test_the_example_runs_when_pasted(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = done.stdout
    for layer in ("relu1", "relu2", "relu3"):
        kinds = re.findall(rf"{layer} +(?:within|between) +(\w+) +(\w+) +{NUMBER}", printed)
        distance = {(first, second): float(number) for first, second, number in kinds}
        assert distance["true", "true"] < min(distance["random", "random"], distance["true", "random"]) - 0.05
    assert len(re.findall(r"relu\d +relu\d +\d\.\d+ +\d\.\d+", printed)) == 9
    (curve,) = re.findall(r"tensor\((\[\[.*?\]\])", printed, re.DOTALL)
    layers = [[float(number) for number in re.findall(NUMBER, row)] for row in curve.split("],")]
    assert len(layers) == 3
    for row in layers:
        assert row == sorted(row, reverse=True), "each layer comes nearer to its final state"
        assert row[-1] == 0
    assert all(below < above for below, above in zip(layers[0][:-1], layers[2][:-1], strict=True)), "bottom up"
    count = int(re.search(r"float64\) (\d+) cholesky", printed)[1])
    assert 10 < count < 48


def test_pictures_are_there():
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", PAGE.read_text())
    assert len(pictures) == 4
    assert all((PAGE.parent / picture).stat().st_size > 1000 for picture in pictures)
