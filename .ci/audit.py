"""Known vulnerabilities of what constraints.txt pins, as far as PyPI's page of a project says: of its newest release.

For where pip-audit, which asks for each release, gets no answer. Exit status 1 if there are any.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

PINS = re.findall(r"^([\w.-]+)==([^\s;]+)", (Path(__file__).parents[1] / "constraints.txt").read_text(), re.MULTILINE)


def known(pin: tuple[str, str]) -> list[str] | None:
    """The vulnerabilities of a pinned release; None if it is not the newest one."""
    name, version = pin
    with urlopen(f"https://pypi.org/pypi/{name}/json", timeout=60) as answer:
        page = json.load(answer)
    return [found["id"] for found in page["vulnerabilities"]] if page["info"]["version"] == version else None


with ThreadPoolExecutor(8) as threads:
    answers = dict(zip(PINS, threads.map(known, PINS), strict=True))
vulnerable = {f"{name} {version}": ids for (name, version), ids in answers.items() if ids}
older = [f"{name} {version}" for (name, version), ids in answers.items() if ids is None]
newest = f"{len(answers) - len(older)} of {len(answers)} pins are newest releases"
print(f"{newest}, {len(vulnerable)} of them with vulnerabilities")
print(f"not known of older releases: {', '.join(older)}")
print("".join(f"{release}: {', '.join(ids)}\n" for release, ids in vulnerable.items()), end="")
sys.exit(bool(vulnerable))
