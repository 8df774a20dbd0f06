"""Who could reach the processes of a study on one machine: what they listen on, and what an uninvited caller gets."""

import ipaddress
import subprocess
import time
from collections.abc import Iterator

import grpc
import psutil
import pytest

NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


def listening(driver: "subprocess.Popen[str]") -> Iterator[tuple[str, str, int]]:
    """(process, address, port) of every socket that `driver` and its descendants listen on now."""
    for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
        try:
            sockets = [s for s in process.net_connections(kind="inet") if s.status == psutil.CONN_LISTEN]
            yield from ((process.name(), s.laddr.ip, s.laddr.port) for s in sockets)
        except psutil.NoSuchProcess:
            continue


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def refusal(port: int) -> grpc.StatusCode:
    """What Ray's control service answers to a question without a token."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(NODES)(b"", timeout=120)
    return caught.value.code()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_listens_on_loopback_alone_and_answers_nobody_without_its_token(new_study, end):
    driver = new_study("--trials", "1", "--epochs", "1", "--pruner", "none").start()
    found, codes = set(), set()
    while driver.poll() is None:
        found |= (new := set(listening(driver)) - found)
        codes |= {refusal(port) for name, _, port in new if name == "gcs_server"}
        time.sleep(0.2)
    ended = end(driver)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in found}
    assert codes == {grpc.StatusCode.UNAUTHENTICATED}
    assert not [socket for socket in found if not is_loopback(socket[1])]
