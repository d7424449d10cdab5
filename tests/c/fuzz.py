"""Every fuzz_*.c of this folder under libFuzzer for a while: ``make fuzz``.

    python tests/c/fuzz.py [SECONDS [NAME…]]

Starts from corpus/fuzz_NAME/ and adds what reaches code that nothing there reached, so commit what
is new. An input that fails is kept as crash-… in build/fuzz/ and ends the run with its report.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cbuild import FUZZERS, HERE, build_library, build_program

FLAGS = ("-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all", "-DLIBFUZZER")


def fuzz(archive: Path, source: Path, seconds: int) -> None:
    """Search from the corpus in a folder of its own, then keep the least that covers as much."""
    program = build_program(archive, source, "clang", *FLAGS, "-fsanitize=fuzzer")
    corpus, found = HERE / "corpus" / source.stem, archive.with_name(f"found-{source.stem}")
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-max_len=1024", "-close_fd_mask=1"]
    artifacts = f"-artifact_prefix={archive.parent}/"
    folders = [str(found), str(corpus)]
    subprocess.run([str(program), *limits, artifacts, *folders], check=True)
    subprocess.run(
        [str(program), "-set_cover_merge=1", "-max_len=1024", *reversed(folders)], check=True
    )


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    names = sys.argv[2:] or [source.stem for source in FUZZERS]
    folder = HERE.parents[1] / "build" / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    archive = build_library(folder, "clang", *FLAGS)
    for source in FUZZERS:
        if source.stem in names:
            fuzz(archive, source, seconds)


if __name__ == "__main__":
    main()
