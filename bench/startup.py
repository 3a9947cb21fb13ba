"""What `cclocal -h` costs beside the help of a bare Typer program: python bench/startup.py [RUNS]

Processor time of the child (user + system), the median of RUNS runs each, interleaved. Aim: a ratio of at most 1.2.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BARE = """
import typer
app = typer.Typer()
@app.command()
def main(name: str = "x", port: int = 8000, dry_run: bool = False) -> None:
    "A bare program."
app()
"""


def cpu_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE)
        ours, theirs = [], []
        for _ in range(runs):
            theirs.append(cpu_s([sys.executable, str(bare), "--help"]))
            ours.append(cpu_s([sys.executable, "-m", "cclocal", "-h"]))
    one, other = statistics.median(ours), statistics.median(theirs)
    print(
        f"cclocal -h {one * 1000:.0f} ms CPU, bare Typer {other * 1000:.0f} ms CPU: ratio {one / other:.2f} (aim ≤ 1.2)"
    )


if __name__ == "__main__":
    main()
