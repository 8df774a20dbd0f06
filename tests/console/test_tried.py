"""A job that would be tried again with a new cluster: which exit codes are worth one."""

import os
import signal
import subprocess
import sys

import pytest

from wsol_pipeline.console.tried import run

TRIED = [sys.executable, "-m", "wsol_pipeline.console.tried"]


def ends_with(code: int) -> list[str]:
    return [sys.executable, "-c", f"import os, signal; {code} >= 0 and os._exit({code}); os.kill(os.getpid(), {-code})"]


@pytest.fixture(autouse=True)
def _signals():
    """As they were: what is tried here runs in this process."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("code", "tried"),
    [(0, 0), (1, 1), (2, 0), (3, 0), (4, 4), (5, 0), (130, 130), (143, 143), (-signal.SIGKILL, 137)],
)
def test_what_no_try_would_mend_counts_as_done_and_says_so(code, tried, capfd):
    assert run(ends_with(code)) == tried
    assert (f"exit code {code} (" in capfd.readouterr().err) == (code in (2, 3, 5))


def test_a_mistyped_option_starts_no_other_cluster(tmp_path):
    job = [sys.executable, "rayjobs/tune_bas.py", "--trails", "30"]
    assert subprocess.run(job, capture_output=True).returncode == 2
    ended = subprocess.run([*TRIED, *job], capture_output=True, text=True)
    assert (ended.returncode, "--trails" in ended.stderr) == (0, True)
    assert ended.stderr.endswith("What to mend, or to run again, stands above.\n")


def test_a_signal_reaches_the_job_and_its_end_is_waited_for():
    ended = "import signal, sys; signal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(143)))"
    job = f"{ended}; print('up', flush=True); signal.pause()"
    with subprocess.Popen(
        [*TRIED, sys.executable, "-c", job], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as tried:
        assert tried.stdout.readline() == "up\n"
        os.killpg(tried.pid, signal.SIGTERM)  # as Ray ends a job
        assert tried.stdout.read() == "saved\n"
    assert tried.returncode == 143
