"""Named scenarios as text: what happens, what the policy does about it, and what it says. Reviewers read behaviour, not asserts.

Lines that begin with `>` are given, the others are what must come of them. `RDSX_RECORD=1` writes the files anew; read the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from rdmaipkit import Agent, FakeHost
from rdsx.rdmaip.actions import Action, AddAddress, Announce, EnsureRoutes, RemoveAddress, Resync, SwitchRule
from rdsx.rdmaip.config import parse_config
from rdsx.rdmaip.events import (
    Barred,
    Conflict,
    Crippled,
    Event,
    HoldExtended,
    Moved,
    Parked,
    PortDown,
    PortUp,
    Refused,
    Settled,
    Unparked,
)
from rdsx.rdmaip.facts import ClockFact, Drain, Failback, HardwareFact, Move, NeighbourConflict, PathFact, Restore, Trigger, Undrain
from rdsx.rdmaip.policy import CommandError

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
KINDS = {each.__name__: each for each in (AddAddress, RemoveAddress, SwitchRule, EnsureRoutes, Announce, Resync)}


def action_text(action: Action) -> str:
    match action:
        case AddAddress(ip, port, prefix):
            return f"add {ip}/{prefix} {port}"
        case RemoveAddress(ip, port, prefix):
            return f"remove {ip}/{prefix} {port}"
        case SwitchRule(ip, port):
            return f"rule {ip} {port}"
        case EnsureRoutes(port):
            return f"routes {port}"
        case Announce(ip, port):
            return f"announce {ip} {port}"
        case Resync():
            return "resync"


def event_text(event: Event) -> str:
    match event:
        case Moved():
            return f"moved {event.ip} {event.from_port} -> {event.to_port} ({event.reason.value}), outage {event.outage_s:g} s"
        case Parked():
            return f"parked {event.ip} on {event.port}: {', '.join(f'{port} {why}' for port, why in event.why)}"
        case Unparked():
            return f"unparked {event.ip} on {event.port} after {event.outage_s:g} s"
        case PortUp():
            return f"up {event.port} after {event.down_s:g} s, hold {event.hold_s:g} s"
        case PortDown():
            return f"down {event.port} ({event.layer.value}) after {event.up_s:g} s, recent downs {event.recent_downs}"
        case Settled():
            return f"settled {event.port}"
        case HoldExtended():
            return f"hold of {event.port} is {event.hold_s:g} s, recent downs {event.recent_downs}"
        case Barred():
            return f"barred {event.ip} from {event.port} for {event.for_s:g} s, errno {event.error}"
        case Refused():
            return f"refused {action_text(event.action)} for {event.for_s:g} s, errno {event.error}"
        case Conflict():
            return f"conflict: {event.text}{' (hands off)' if event.hands_off else ''}"
        case Crippled():
            return f"crippled by {action_text(event.action)}: {event.capability}"


class Stage:
    """Carries out the lines of one transcript."""

    def __init__(self, config: str) -> None:
        self.config = parse_config(config)
        self.host = FakeHost(self.config)
        self.agent: Agent | None = None
        self.now_s = 0.0

    def run(self, line: str) -> list[str]:
        word, *rest = line.split()
        if word == "start":
            self.agent = Agent(self.host, self.now_s)
            return self.outcome(self.agent.rest())
        if word == "until":
            return self.sleep(float(rest[0]))
        if self.agent is None:
            self.prepare(word, rest)
            return []
        try:
            self.happen(self.agent, word, rest)
        except CommandError as error:
            return [f"error: {error}"]
        return self.outcome(agent.rest()) if (agent := self.agent) else []

    def prepare(self, word: str, rest: list[str]) -> None:
        """Before the policy starts."""
        if word == "put":
            ip, prefix = rest[0].split("/")
            self.host.put(ip, rest[1], int(prefix), int(rest[2]) if len(rest) > 2 else 0)
        else:
            self.change(word, rest)

    def change(self, word: str, rest: list[str]) -> None:
        changes: dict[str, dict[str, object]] = {
            "cut": {"carrier": False},
            "mend": {"carrier": True},
            "admin-down": {"admin": False},
            "admin-up": {"admin": True},
            "vanish": {"present": False},
            "appear": {"present": True, "admin": True, "carrier": True},
        }
        if word in changes:
            self.host.change(rest[0], **changes[word])
        elif word == "replace":
            self.host.change(rest[0], index=self.host.links[rest[0]].index + 100, mac=bytes([2, 9, 9, 9, 9, 9]))
        elif word == "mac":
            self.host.change(rest[0], mac=bytes([2, 1, 1, 1, 1, 1]))
        elif word == "tag":
            self.host.change(rest[0], tag=int(rest[1]))
        else:
            raise AssertionError(f"no such line: {word}")

    def happen(self, agent: Agent, word: str, rest: list[str]) -> None:
        commands = {"drain": Drain, "undrain": Undrain, "move": Move, "failback": Failback, "trigger": Trigger, "restore": Restore}
        if word in commands:
            agent.policy.handle(commands[word](*rest), self.now_s)  # type: ignore[operator]
        elif word == "hardware":
            agent.policy.handle(HardwareFact(rest[0], {"active": True, "dead": False, "none": None}[rest[1]]), self.now_s)
        elif word == "path":
            agent.policy.handle(PathFact(rest[0], {"answered": True, "silent": False}[rest[1]]), self.now_s)
        elif word == "clock":
            agent.policy.handle(ClockFact(float(rest[0]), self.now_s), self.now_s)
        elif word == "claimed":
            agent.policy.handle(NeighbourConflict(rest[0], bytes.fromhex(rest[1])), self.now_s)
        elif word == "take":
            ip, prefix = rest[0].split("/")
            self.host.take(ip, rest[1], int(prefix))
        elif word == "put":
            self.prepare(word, rest)
        elif word == "fail":  # the kernel finds a duplicate
            self.host.failed |= {key for key in self.host.addresses if key[0] == rest[0]}
            for report in self.host.snapshot().addresses:
                self.host.reports.append(report)
        elif word == "refuse":
            self.host.refusals[KINDS[rest[0]], rest[1]] = int(rest[2])
        elif word == "allow":
            self.host.refusals.clear()
        elif word == "cripple":
            self.host.crippled = True
        elif word == "kill":
            self.agent = None
        else:
            self.change(word, rest)

    def sleep(self, until_s: float) -> list[str]:
        """Time passes; what happens on the way has its instant in front."""
        self.now_s = until_s
        said: list[str] = []
        while self.agent is not None:
            due_s = self.agent.policy.next_deadline()
            if due_s is None or due_s > until_s:
                list(self.agent.sleep_until(until_s))
                break
            said += [f"{due_s:g} {each}" for each in self.outcome(list(self.agent.sleep_until(due_s)))]
        return said

    def outcome(self, actions: Iterable[Action]) -> list[str]:
        if self.agent is None:
            return []
        said = [action_text(action) for action in actions] + [event_text(event) for event in self.agent.events()]
        return [each for each in said if each != "resync"]


def played(text: str) -> str:
    """A transcript as it really goes."""
    head, _, script = text.partition("\n---\n")
    config = "\n".join(line for line in head.splitlines() if not line.startswith("# "))
    stage = Stage(config)
    lines = []
    for line in script.splitlines():
        if line.startswith((">", "#")) or not line:
            lines.append(line)
        if line.startswith("> "):
            lines += [f"  {said}" for said in stage.run(line[2:])]
    return f"{head}\n---\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    found = played(text)
    if os.environ.get("RDSX_RECORD"):
        path.write_text(found)
    else:
        assert found == text


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 20
    for path in TRANSCRIPTS:
        assert path.read_text().startswith("# "), f"{path.name} says in its first line what it is about"
