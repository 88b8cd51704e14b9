"""One reader under atheris: ``python -m tests.fuzz.readers.fuzzed READER SECONDS FOLDER``, as the runner starts it.

What is found is put into ``FOLDER/found`` once a kind, and fuzzing goes on; a crash or a hang ends the process, and
libFuzzer leaves the input there.
"""

import hashlib
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sdkernels"]):
    from tests.fuzz.readers.every import READERS

from tests.fuzz.readers.judge import Breach, judge

_MEGABYTES = 12_000
_LONGEST = 1 << 18


def main(name: str, seconds: str, folder: Path) -> None:
    """Fuzz until the time is over."""
    reader = READERS[name]
    found, corpus = folder / "found", folder / "corpus"
    for place in (found, corpus):
        place.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(reader.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    kinds: set[str] = set()

    def one(content: bytes) -> None:
        try:
            judge(reader, content, folder / "place")
        except Breach as breach:
            if breach.what not in kinds:
                kinds.add(breach.what)
                file = found / hashlib.sha256(breach.what.encode()).hexdigest()[:12]
                file.write_bytes(content)
                print(f"FOUND {name} {file.name}: {' '.join(str(breach).split())[:600]}", flush=True)

    def change(content: bytes, longest: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.4:
            return atheris.Mutate(content, longest)
        return reader.changed(content, draw)[:longest]

    options = [f"-max_total_time={seconds}", f"-max_len={_LONGEST}", "-timeout=60", f"-rss_limit_mb={_MEGABYTES}"]
    options += [f"-artifact_prefix={found}/", "-print_final_stats=1", "-seed=1", "-len_control=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
