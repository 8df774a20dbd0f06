"""Ctrl+C and SIGTERM, once and twice, sent to processes of their own."""

import signal
import subprocess
import sys

import psutil
import pytest

JOB = """
import subprocess, sys, time
from wsol_pipeline import interrupts
from wsol_pipeline.console.main import run_main

def abrupt():
    print("ready", flush=True)
    time.sleep(1000)

def gentle():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        with interrupts.gently():
            print("ready", child.pid, flush=True)
            while not interrupts.asked():
                time.sleep(0.01)
            print("asked", flush=True)
            time.sleep(float(sys.argv[2]))
            print("cleaned up", flush=True)
    finally:
        child.kill()

run_main({"abrupt": abrupt, "gentle": gentle}[sys.argv[1]])
"""


@pytest.fixture
def start():
    """`start(kind, seconds of cleaning up)`: a job that is ready for signals, and the words of its first line."""
    jobs = []

    def run(*arguments):
        command = [sys.executable, "-c", JOB, *arguments]
        jobs.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return jobs[-1], jobs[-1].stdout.readline().split()

    yield run
    for job in jobs:
        job.kill()
        job.communicate()


def gone(pid):
    """Whether a process ends by itself soon: the one that is meant would sleep for longer."""
    try:
        psutil.Process(pid).wait(timeout=400)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # of a parent that does not ask
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", ["abrupt", "gentle"])
def test_the_first_signal_ends_a_job_with_the_shells_code_and_one_line(start, kind, number, code):
    job, _ = start(kind, "0.1")
    job.send_signal(number)
    out, err = job.communicate(timeout=400)
    assert job.returncode == code
    assert err == "interrupted: the same command continues\n"
    assert ("cleaned up" in out) == (kind == "gentle")


def test_the_second_signal_ends_everything_at_once(start):
    job, (_, child) = start("gentle", "1000")
    job.send_signal(signal.SIGINT)
    assert job.stdout.readline() == "asked\n"
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=400)
    assert (job.returncode, out) == (130, "")
    assert err.endswith("interrupted twice: out at once\n")
    assert gone(int(child))
