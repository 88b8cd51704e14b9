"""Programs beside the tests, which break what would take the tests' own process with it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def said_by(program: str, folder: Path) -> Any:
    """The JSON that ``python -m tests.faults.PROGRAM FOLDER`` prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.faults.{program}", folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
