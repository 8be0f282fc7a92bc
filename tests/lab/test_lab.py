"""The lab itself: guests boot, commands run there, faults happen, and nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from lab import kernel, requirements
from lab.control import GuestDiedError
from lab.guest import Guest
from lab.kernel import KernelUnavailableError
from lab.lab import SMALLER, Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CHECKOUT = Path(__file__).parents[2]
GUARD_S = 120.0
FREED_S = 20.0
# From the smaller address: a connection from the larger one is reset at once, which connect() may report.
CONNECT = "import socket; socket.create_connection(({!r}, 16385), timeout=2, source_address=({!r}, 0))"

# A lab in a process of its own, that says what it has started and then waits.
CHILD = """
import trio
from tests.lab import Lab

async def main():
    async with Lab() as lab:
        guest = await lab.start(kernel={series!r})
        async with lab.host_process(["sleep", "1000"]) as process:
            print(lab.namespace.keeper_pid, guest.pid, process.pid, lab.folder, flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


async def test_a_command_runs_in_the_guest(guest: Guest) -> None:
    status, output = await guest.run("uname -r; lsmod | grep ^rds_tcp >&2; exit 3")
    assert status == 3
    assert output.splitlines()[0] == guest.settings.kernel.release
    assert output.splitlines()[1].startswith("rds_tcp")
    assert await guest.run("true") == (0, "")


async def test_the_guest_sees_the_hosts_files_and_cannot_change_them(guest: Guest) -> None:
    assert digest_of_this_file() in await guest.check(f"sha256sum {__file__}")
    await guest.check("echo mine >/etc/rdsx-lab-test")
    assert "rdsx-lab-test" not in os.listdir("/etc")


async def test_a_command_that_takes_too_long_is_killed(guest: Guest) -> None:
    status, output = await guest.run("echo begun; sleep 1000 & sleep 1001", 1.0)
    assert (status, output) == (124, "begun\n")
    assert (await guest.run("pgrep -x sleep")).status == 1


async def test_a_cancelled_command_is_killed(guest: Guest) -> None:
    with trio.move_on_after(0.5):
        await guest.run("sleep 1000")
    assert (await guest.run("pgrep -x sleep")).status == 1


async def test_commands_run_side_by_side(guest: Guest) -> None:
    async with guest.start_process("mkfifo /run/go; echo one; read line </run/go; echo $line") as first, guest.start_process("sleep 1000"):
        await first.wait_output("one")
        assert await guest.run("echo two") == (0, "two\n")
        await guest.check("echo three >/run/go", 10)
        assert await first.wait() == (0, "one\nthree\n")
    assert (await guest.run("pgrep -x sleep")).status == 1


async def test_waiting_for_output_that_does_not_come_tells_why(guest: Guest) -> None:
    async with guest.start_process("echo no; exit 5") as process:
        with pytest.raises(AssertionError, match="ended with status 5 and without 'yes'"):
            await process.wait_output("yes")
    with pytest.raises(AssertionError, match="exit status 7"):
        await guest.check("exit 7")


async def test_a_process_beside_the_guest(lab: Lab, guest: Guest) -> None:
    async with lab.host_process(["cat"]) as process:
        await process.stdin.send_all(b"back and forth")
        assert await process.stdout.receive_some() == b"back and forth"
    assert process.returncode == -signal.SIGTERM
    status, output = await lab.host_run(["sh", "-c", "echo out; echo err >&2; exit 9"])
    assert (status, sorted(output.split())) == (9, ["err", "out"])
    assert (await lab.host_run(["sleep", "1000"], 0.2)).status == 124


async def test_the_cable_can_be_pulled(lab: Lab, guest: Guest) -> None:
    connect = [sys.executable, "-c", CONNECT.format(guest.address, SMALLER)]
    connect6 = [sys.executable, "-c", CONNECT.format(guest.address6, "fd77::1")]
    assert (await lab.host_run(connect)).status == 0
    assert (await lab.host_run(connect6)).status == 0
    guest.pull_cable()
    assert (await lab.host_run(connect)).status == 1
    guest.plug_cable()
    assert (await lab.host_run(connect)).status == 0


async def test_the_network_can_be_disturbed(guest: Guest) -> None:
    async with guest.netem("delay 20ms loss 10%"):
        assert "delay 20ms loss 10%" in await guest.check("tc qdisc show dev eth0")
    assert "netem" not in await guest.check("tc qdisc show dev eth0")


async def test_traffic_is_captured(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    if not requirements.has("tcpdump"):
        pytest.skip("package tcpdump is not installed")
    async with lab.capture(tmp_path / "bridge.pcap"):
        assert (await lab.host_run([sys.executable, "-c", CONNECT.format(guest.address, SMALLER)])).status == 0
    assert len((tmp_path / "bridge.pcap").read_bytes()) > 24 + 3 * 70  # the file's header, SYN, SYN and ACK, ACK


async def test_the_kernels_rds_forgets(guest: Guest) -> None:
    async def peers() -> str:
        return await guest.check(guest.rds_command("info"))

    await guest.run(guest.rds_command("send 10.77.0.2:4001 10.77.0.77:4000 --nonblock --drain 0"))
    assert "10.77.0.77" in await peers()
    await guest.reload()
    assert "10.77.0.77" not in await peers()


async def test_two_guests_talk_and_one_dies(lab: Lab, guest: Guest, series: str) -> None:
    other = await lab.start("L", address="10.77.0.3", kernel=series)
    try:
        answer = await other.check(other.rds_command("ping 10.77.0.3 10.77.0.2 --count 3"))
        assert '"answers": 3' in answer
        async with other.start_process("sleep 1000") as process:
            await other.kill()
            assert not other.is_up
            with pytest.raises(GuestDiedError):
                await process.wait()
        await other.reboot()
        assert (await other.run("cat /sys/class/net/eth0/address")).output == "52:54:00:77:00:03\n"
        await other.stop()
        with pytest.raises(GuestDiedError):
            await other.run("true")
        assert guest.is_up
    finally:
        await other.kill()


async def test_a_guest_that_cannot_be_set_up_says_why(lab: Lab, series: str) -> None:
    with pytest.raises(GuestDiedError, match="no_such_module"):
        await lab.start("X", address="10.77.0.4", kernel=series, modules=["no_such_module"])
    assert "tap4" not in (await lab.host_run(["ip", "link"])).output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_is_left_of_a_process_that_is_killed(series: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", CHILD.format(series=series)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            keeper, guest, process, folder = child.stdout.readline().split()
            pids = [int(keeper), int(guest), int(process), *children(int(guest))]
            assert len(pids) == 4
            assert all(is_alive(pid) for pid in pids)
        finally:
            child.send_signal(number)
    deadline_s = time.monotonic() + FREED_S
    while any(is_alive(pid) for pid in pids) or Path(folder).exists():
        assert time.monotonic() < deadline_s, [pid for pid in pids if is_alive(pid)]
        time.sleep(0.05)


async def test_everything_is_freed_when_the_body_raises(series: str) -> None:
    pids: list[int] = []
    with pytest.raises(ZeroDivisionError):
        async with Lab() as lab:
            guest = await lab.start(kernel=series)
            process = lab.host_process(["sleep", "1000"])
            assert guest.pid is not None
            pids += [lab.namespace.keeper_pid, guest.pid, process.pid, *children(guest.pid)]
            folder = lab.folder
            raise ZeroDivisionError
    assert len(pids) == 4
    assert not any(is_alive(pid) for pid in pids)
    assert folder.name not in os.listdir(folder.parent)


@pytest.mark.parametrize("mode", ["root", "user"])
def test_from_the_command_line_with_and_without_root(series: str, mode: str) -> None:
    environment = os.environ | {"RDSX_LAB_MODE": mode}

    def tests_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.lab", *arguments]
        return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=GUARD_S, check=False)

    check = tests_lab("check")
    if f"as {mode}" not in check.stdout:
        pytest.skip(f"namespaces cannot be made as {mode} here: {check.stdout}")
    done = tests_lab("run", "--kernel", series, "--", "uname -r; cat /proc/net/protocols; exit 3")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith(kernel.find(series).release)
    assert "\nRDS " in done.stdout


def test_what_is_absent_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(requirements.ENVIRONMENT, "PATH", str(tmp_path))
    assert "package qemu-system-x86 is not installed: apt-get install qemu-system-x86" in requirements.absent()
    assert "package busybox-static is not installed: apt-get install busybox-static" in requirements.absent(preparing=True)
    monkeypatch.setenv("RDSX_LAB_DIR", str(tmp_path))
    with pytest.raises(KernelUnavailableError, match=r"package linux-image .* python -m tests\.lab prepare"):
        kernel.find()


def digest_of_this_file() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
