"""``contents.py SDIST WHEEL``: each holds what it should, and nothing else."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

sdist, wheel = sys.argv[1:]
package = {str(path) for path in Path("sdkernels").rglob("*.py")} | {"sdkernels/py.typed"}


def must(is_so: bool, what: str) -> None:
    if not is_so:
        sys.exit(what)


with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
    tag = re.search(r"-(cp\d+)-cp\d+-", wheel)
cores = {name for name in names if re.fullmatch(r"sdkernels/_C\.cpython-\d+-[\w-]+\.so", name)}
described = {name for name in names if re.match(r"sdkernels-[^/]+\.dist-info/", name)}
must(package <= names, f"not in the wheel: {sorted(package - names)[:5]}")
must(names == package | cores | described, f"too much in the wheel: {sorted(names - package - cores - described)[:5]}")
must(len(cores) == 1 and tag is not None and f"cpython-{tag[1][2:]}-" in min(cores), f"cores in the wheel: {cores}")
must(any(name.endswith("licenses/LICENSE") for name in described), "no LICENSE in the wheel")
print(f"wheel     holds {len(package)} files of the package, one core ({min(cores)}), LICENSE, py.typed, nothing else")

with tarfile.open(sdist) as packed:
    held = {name.partition("/")[2] for name in packed.getnames()}
needed = package | {"setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md", "tests/conftest.py"}
for folder in (".ci", "csrc", "tests", "python_bench", "docs"):
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    needed |= {str(path) for path in paths if path.suffix not in (".so", ".pyc")}
must(needed <= held, f"not in the sdist: {sorted(needed - held)[:5]}")
wrong = sorted(name for name in held if name.endswith((".so", ".pyc")))
must(not wrong, f"in the sdist: {wrong[:5]}")
print(f"wheel     the sdist holds all {len(needed)} files that build and test it, and nothing compiled")
