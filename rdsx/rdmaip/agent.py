"""The agent: the one place where the policy, the kernel, the clock and trio meet.

Owns the tasks that turn what happens into facts, and the loop that has the policy's actions done. It keeps nothing that a restart would
miss: killed at any moment and started again, it reads the kernel and goes on. Invariants: every fact that has arrived is handed in before
the next action is asked for; nothing is awaited between an action and its result; one agent for each network namespace.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Iterable

import trio

from rdsx.netlink.rtnetlink import BadNetlink
from rdsx.netlink.sockets import Commands, Groups, Monitor, Overrun
from rdsx.rdmaip.actions import Action, Resync
from rdsx.rdmaip.announcer import Announcer
from rdsx.rdmaip.backend import Backend
from rdsx.rdmaip.capabilities import explain_missing, missing_capabilities
from rdsx.rdmaip.config import Config
from rdsx.rdmaip.events import Event
from rdsx.rdmaip.facts import ClockFact, Command, Fact, LinkFact, Restore
from rdsx.rdmaip.hardware import find_rdma_ports, hardware_facts
from rdsx.rdmaip.hardware_watch import watch_hardware
from rdsx.rdmaip.listener import Listener
from rdsx.rdmaip.lock import take_lock
from rdsx.rdmaip.neighbourhood import Neighbourhood
from rdsx.rdmaip.policy import Policy
from rdsx.rdmaip.profile import Profile, inspect
from rdsx.rdmaip.rehearsal import Rehearsal
from rdsx.rdmaip.service import ServiceManager
from rdsx.rdmaip.status import Status, status_of
from rdsx.rdmaip.wording import describe_event
from rdsx.transports.signal import Signal

__all__ = ["Agent", "MissingCapabilityError"]

log = logging.getLogger("rdsx.rdmaip")

GROUPS = (
    Groups.LINK | Groups.IPV4_ADDRESS | Groups.IPV6_ADDRESS | Groups.IPV4_RULE | Groups.IPV6_RULE | Groups.IPV4_ROUTE | Groups.IPV6_ROUTE
)
CLOCK_S = 10.0  # how often wall time is compared with ours
MAX_BATCHES = 16  # of what the kernel says, at once: who changes the network without pause cannot keep the agent from acting
MAX_ACTIONS = 1000  # in one go; far more than any plan has, so that a fault of ours cannot hang the host's agent


class MissingCapabilityError(PermissionError):
    """EPERM: the process may not do what the agent is for; the text names the capability and how to give it."""


class Agent:
    """Keeps the addresses of a configuration where they can be used. Use it as a context manager, and `run` it inside, once.

    It serves the network namespace of the thread that enters it. With `dry_run` it changes nothing, and needs no privilege: what it would
    do is logged and taken for done.

    Raises, on entering:
        AgentRunningError: another agent serves this namespace.
        MissingCapabilityError: this process may not change addresses, or not announce them.
        OSError: the kernel has no netlink, or no packet sockets.
    """

    def __init__(self, config: Config, *, dry_run: bool = False) -> None:
        self._given = config
        self._dry_run = dry_run
        self._resources = contextlib.ExitStack()
        self._profile = Profile()
        self._service = ServiceManager()
        self._deadline_moved = Signal()
        self._subscribers: dict[trio.MemorySendChannel[Event], None] = {}
        self._interfaces: dict[str, int] = {}  # indices of ports whose settings were looked at
        self._round: trio.CancelScope | None = None

    def __enter__(self) -> Agent:
        missing = missing_capabilities()
        if missing and not self._dry_run:
            raise MissingCapabilityError(errno.EPERM, explain_missing(missing))
        with contextlib.ExitStack() as resources:
            resources.callback(self._service.close)
            # Before the tables are read: what changes meanwhile is then heard.
            self._monitor = resources.enter_context(Monitor(GROUPS))
            self._commands = resources.enter_context(Commands())
            self._listener: Listener | None = None
            if not self._dry_run:
                resources.enter_context(contextlib.closing(take_lock()))
                self._announcer = resources.enter_context(contextlib.closing(Announcer()))
                self._listener = resources.enter_context(contextlib.closing(Listener()))
            self._adopt(self._given)
            self._policy = Policy(self._config, trio.current_time())
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *reason: object) -> None:
        for channel in self._subscribers:
            channel.close()
        self._resources.close()

    # -- for users

    @property
    def config(self) -> Config:
        """What it goes by."""
        return self._config

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started` once every address is where it should be.

        Cancelled, it finishes the action it is at, which takes microseconds, and does what `on_exit` says before it returns.
        """
        self._handle(hardware_facts(find_rdma_ports(self._config.ports)))  # before the first plan is made
        self._resync()
        self._settle()
        self._service.ready(f"{len(self._config.addresses)} addresses on {len(self._config.ports)} ports")
        task_status.started()
        try:
            while True:
                async with trio.open_nursery() as tasks:
                    self._round = tasks.cancel_scope
                    self._start_tasks(tasks)
                # Here only after `reconfigure`: a cancellation from outside goes on upwards.
        finally:
            self._service.stopping()
            self._end()

    def reconfigure(self, config: Config) -> None:
        """Go by another configuration from now on. Addresses in both do not move for it; those no longer listed stay where they are."""
        self._adopt(config)
        self._policy.reconfigure(self._config, trio.current_time())
        self._resync()
        self._settle()
        if self._round is not None:
            self._round.cancel()  # what listens and asks does so for the former configuration

    def command(self, command: Command) -> None:
        """What an operator wants; done when this returns, as far as it can be."""
        self.report([command])

    def status(self) -> Status:
        """What it knows of ports and addresses now."""
        return status_of(self._policy, trio.current_time())

    def subscribe(self, buffer: int = 256) -> trio.MemoryReceiveChannel[Event]:
        """Events from now on; close it when done. Who is more than `buffer` behind misses the newest. It ends with the agent."""
        send, receive = trio.open_memory_channel[Event](buffer)
        self._subscribers[send] = None
        return receive

    # -- beginning and end

    def _adopt(self, config: Config) -> None:
        self._config = config
        self._backend: Backend | Rehearsal
        if self._dry_run:
            self._backend = Rehearsal(config, self._commands)
        else:
            self._announcer.form = config.announce_form
            self._backend = Backend(config, self._commands, self._announcer)

    def _start_tasks(self, tasks: trio.Nursery) -> None:
        tasks.start_soon(self._hear_kernel)
        tasks.start_soon(self._keep_deadlines)
        tasks.start_soon(watch_hardware, self._config.ports, self.report)
        if self._listener is not None:
            tasks.start_soon(Neighbourhood(self._config, self._backend.state, self._listener, self.report).run)
        if self._config.failback_sync_s:
            tasks.start_soon(self._keep_clock)
        if self._service.watchdog_interval_s is not None:
            tasks.start_soon(self._show_life, self._service.watchdog_interval_s)

    def _end(self) -> None:
        """What `on_exit` says."""
        if self._config.on_exit == "restore":
            self._handle([Restore()])
            self._settle()
            try:
                self._backend.withdraw()
            except OSError as error:
                log.warning("rules and routes cannot be read to be taken back: %s", error.strerror)
            for path in self._profile.restore():
                log.warning("%s could not be put back to what it was", path)

    # -- facts in, actions out

    def report(self, facts: Iterable[Fact]) -> None:
        """Hand facts to the policy, and have done what follows."""
        self._handle(facts)
        self._settle()

    def _handle(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, LinkFact):
                self._prepare(fact)
            self._policy.handle(fact, trio.current_time())

    def _settle(self) -> None:
        """Have the policy's actions done until it wants no more."""
        for _ in range(MAX_ACTIONS):
            self._take_messages()
            action = self._policy.next_action()
            if action is None:
                break
            error = self._execute(action)
            self._policy.done(action, error, trio.current_time())
        else:
            log.error("%d actions without an end: this is a fault of rdsx; going on at the next event", MAX_ACTIONS)
        while (event := self._policy.poll_event()) is not None:
            self._publish(event)
        self._deadline_moved.set()

    def _execute(self, action: Action) -> int | None:
        """Returns None, or the errno."""
        if not isinstance(action, Resync):
            return self._backend.execute(action)
        try:
            self._resync()
        except OSError as error:
            log.warning("the state of the network cannot be read: %s", error.strerror)
            return error.errno or errno.EIO
        return None

    def _take_messages(self) -> None:
        """Hand in all that the kernel has said up to now."""
        try:
            for _ in range(MAX_BATCHES):
                messages = self._monitor.receive_nowait()
                facts = self._backend.facts(messages)
                if not messages and not facts:
                    break
                self._handle(facts)
        except (Overrun, BadNetlink) as error:
            self._lost(error)
        if self._backend.state.needs_resync:
            self._resync()

    def _lost(self, error: Overrun | BadNetlink) -> None:
        log.info("some of what the kernel said is lost (%s): reading everything anew", error)
        self._resync()

    def _resync(self) -> None:
        """Read everything anew. What the kernel has said before and is still to be read, is older than this and says the same."""
        snapshot = self._backend.snapshot()
        for link in snapshot.links:
            self._prepare(link)
        self._policy.handle(snapshot, trio.current_time())

    def _publish(self, event: Event) -> None:
        log.info("%s", describe_event(event))
        for channel in list(self._subscribers):
            with contextlib.suppress(trio.WouldBlock):
                try:
                    channel.send_nowait(event)
                except trio.BrokenResourceError:
                    del self._subscribers[channel]

    def _prepare(self, link: LinkFact) -> None:
        """Put the settings of a port right when it appears; one with another index is another interface."""
        if not link.present or self._interfaces.get(link.port) == link.index or self._config.sysctl == "ignore":
            return
        self._interfaces[link.port] = link.index
        if self._config.sysctl == "check" or self._dry_run:
            for finding in inspect([link.port]):
                log.warning("%s", finding)
            return
        done, left = self._profile.apply(link.port)
        for finding in done:
            log.info("set %s to %d, it was %d: %s", finding.path, finding.wanted, finding.found, finding.why)
        for finding in left:
            log.warning("%s", finding)

    # -- tasks

    async def _hear_kernel(self) -> None:
        while True:
            try:
                self._handle(self._backend.facts(await self._monitor.receive()))
            except (Overrun, BadNetlink) as error:
                self._lost(error)
            self._settle()

    async def _keep_deadlines(self) -> None:
        while True:
            deadline_s = self._policy.next_deadline()
            with trio.move_on_at(float("inf") if deadline_s is None else deadline_s):
                await self._deadline_moved.wait()
                continue
            self._policy.handle_timeout(trio.current_time())
            self._settle()

    async def _keep_clock(self) -> None:
        while True:
            self.report([ClockFact(time.time(), trio.current_time())])
            await trio.sleep(CLOCK_S)

    async def _show_life(self, interval_s: float) -> None:
        """Through the same loop as everything else: if that hangs, so does this."""
        while True:
            self._service.alive()
            await trio.sleep(interval_s)
