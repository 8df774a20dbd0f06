"""For a job that is tried again when it fails, as KubeRay's `backoffLimit` does: what is not worth one ends with 0.

    python -m wsol_pipeline.console.tried python rayjobs/tune_bas.py --data s3://bucket/cub ...

Each try of a RayJob is a new cluster, and an option that does not exist would have had one started four times: KubeRay
knows no exit codes, only whether a job failed. An MLflow that was away at the end (5) is not worth one either: nothing
is lost, and the same command writes what it lacks once it is back.
"""

import signal
import subprocess
import sys

from wsol_pipeline.errors import DataError, PartialError, UsageError

LASTING = {UsageError.exit_code: "usage", DataError.exit_code: "data", PartialError.exit_code: "done in part"}


def run(command: list[str]) -> int:
    """Run `command`; its exit code, or 0 for one of `LASTING`, which is said."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # the job gets it too, and is waited for
    code = subprocess.run(command).returncode
    if code not in LASTING:
        return 128 - code if code < 0 else code
    print(
        f"exit code {code} ({LASTING[code]}): not worth another cluster, so this try counts as done. What to mend, or "
        "to run again, stands above.",
        file=sys.stderr,
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
