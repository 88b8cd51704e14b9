"""``python .ci/licences.py > docs/licences.md``: what sdkernels brings, by extra, and under which licence.

Needs an environment with ``-c constraints.txt ".[test,fuzz,lint,triton]"``. Fails where a licence is of no known kind.
"""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("", "paper", "lightning", "parquet", "scale", "triton", "test", "fuzz", "lint")
HEAD = """# Licences of what sdkernels brings

sdkernels is under Apache-2.0. Written by `python .ci/licences.py`, from what the packages say of themselves, in an
environment with `python -m pip install -c constraints.txt -e ".[test,fuzz,lint,triton]"` on Linux, Python 3.11, with
the CPU build of torch. PyPI's torch for Linux is built for CUDA, and brings triton (MIT) and NVIDIA's libraries
(`nvidia-*`, `cuda-*`), most under NVIDIA's own terms: sdkernels neither holds nor links them.

Weak copyleft asks for the source of changes to those packages, and of nothing that uses them; sdkernels holds none of
them. What the packages' wheels hold of others is for them to say.
"""
# In the order in which they are looked for: the first that fits a licence's text names its kind.
KINDS = {
    "weak copyleft": r"MPL|Mozilla|LGPL|Lesser",
    "copyleft": r"GPL|General Public",
    "permissive": r"MIT|BSD|Apache|PSF|Python Software|ISC|Unlicense|HPND|Zlib|BSL-1|CC0|0BSD|matplotlib",
}


def licence(of: Distribution) -> str:
    """As its metadata has it: the expression, else the classifiers, else the first line of the text, or of its file."""
    about = of.metadata
    classified = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License :: ")]
    named = [c for c in classified if c != "OSI Approved"]
    files = [of.read_text(f"licenses/{name}") or "" for name in about.get_all("License-File") or ()]
    text = about.get("License-Expression") or "; ".join(named)
    text = text or next((held.strip().split("\n")[0] for held in (about.get("License") or "", *files) if held), "")
    return re.sub(r"\s+", " ", text)


def kind(text: str) -> str:
    """Which of KINDS a licence is."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, text)), "unknown")


def brought(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """The packages that one brings on this machine, directly or not; those that are not installed are left out."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    try:
        asked = distribution(name).requires or ()
    except PackageNotFoundError:
        return
    yield name
    for requirement in map(Requirement, asked):
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({**default_environment(), "extra": extra}) for extra in (*extras, "")
        )
        if wanted:
            yield from brought(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)


def main() -> int:
    """Print the page; 1 if a licence is of no known kind, or copyleft."""
    print(HEAD)
    listed: set[str] = {"sdkernels"}
    found: dict[str, list[tuple[str, str, str]]] = {}
    for extra in EXTRAS:
        names = sorted({*brought("sdkernels", frozenset([extra]), set())} - listed)
        listed |= {*names}
        found[extra] = [(name, text := licence(distribution(name)), kind(text)) for name in names]
    kinds = [kind for rows in found.values() for _, _, kind in rows]
    print(f"{len(kinds)} packages: {', '.join(f'{kinds.count(kind)} {kind}' for kind in sorted({*kinds}))}.\n")
    for extra, rows in found.items():
        print(f"## {f'The extra `{extra}`, beyond the above' if extra else 'Always'}\n")
        print("| package | licence | kind |\n| --- | --- | --- |")
        for name, text, sort in rows:
            print(f"| {name} {distribution(name).version} | {text} | {sort} |")
        print()
    bad = [row for rows in found.values() for row in rows if row[2] in ("unknown", "copyleft")]
    for row in bad:
        print("not known to be compatible:", *row, file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
