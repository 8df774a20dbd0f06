"""Tell Ray that a cloud takes this machine back, so that its trials write checkpoints before it is gone.

    python cluster/spot.py aws        # or gcp; RAY_ADDRESS says where the cluster's head is

Asks the cloud's metadata service every two seconds, until it says so. In Kubernetes nobody needs this: a pod that is
ended gets SIGTERM, on which Ray tells itself.
"""

import datetime
import json
import math
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

AWS, GCP = "http://169.254.169.254", "http://metadata.google.internal"
SECONDS = 2.0  # between two questions
GCP_NOTICE = 30.0  # seconds that Google gives


def aws(service: str = AWS) -> float | None:
    """Seconds until Amazon ends this machine; None if it does not."""
    token = _ask(f"{service}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    said = _ask(f"{service}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token})
    if not said:
        return None
    ends = datetime.datetime.fromisoformat(json.loads(said)["time"])
    return (ends - datetime.datetime.now(datetime.UTC)).total_seconds()


def gcp(service: str = GCP) -> float | None:
    """Seconds until Google ends this machine; None if it does not."""
    said = _ask(f"{service}/computeMetadata/v1/instance/preempted", "GET", {"Metadata-Flavor": "Google"})
    return GCP_NOTICE if said == "TRUE" else None


def _ask(url: str, method: str, headers: dict[str, str]) -> str:
    """What the service answers; "" if it knows nothing of that."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers), timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise


def notice(cloud: Callable[[], float | None]) -> float:
    """Wait for the notice; the seconds that are left then. A service that does not answer is asked again."""
    while True:
        try:
            left = cloud()
        except Exception as error:  # noqa: BLE001  # whatever it was, nobody would start this again
            print(f"the metadata service does not answer: {type(error).__name__}: {error}", flush=True)
            left = None
        if left is not None:
            return max(0.0, left)
        time.sleep(SECONDS)


def drain(seconds: float) -> None:
    """Let Ray call this machine's node draining: nothing new comes to it, trials hear of it. Tried until it ends."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes this machine back"]
        command = [str(Path(sys.executable).with_name("ray")), "drain-node", *why]
        if subprocess.run([*command, "--deadline-remaining-seconds", str(math.floor(left))]).returncode == 0:
            return
        time.sleep(1)


if __name__ == "__main__":
    clouds = {"aws": aws, "gcp": gcp}
    if sys.argv[1:] not in ([name] for name in clouds):
        sys.exit("usage: python cluster/spot.py aws|gcp")
    left = notice(clouds[sys.argv[1]])
    print(f"{left:.0f} s are left", flush=True)
    drain(left)
