"""The next thing to do for one address. Owns the order of a move; looks at the policy's picture and changes nothing.

trim      a copy too many, when one more is needed: there are never three
add       where it should be
route     the port's table, then the address's source rule
remove    every other copy
announce  when it is due; only then, so that one port answers
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdsx.rdmaip.actions import Action, AddAddress, Announce, EnsureRoutes, RemoveAddress, SwitchRule

if TYPE_CHECKING:
    from rdsx.rdmaip.address import Address, Key
    from rdsx.rdmaip.policy import Policy

__all__ = ["next_announcement", "next_step"]


def next_step(policy: Policy, address: Address) -> Action | None:
    """The next action of its move, or None if there is none, or none that need not wait."""
    verdict = policy.verdicts.get(address.ip)
    if verdict is None:
        return None
    wanted = address.wanted(verdict.port, policy.config.mark)
    if wanted is None:
        return _trim(policy, address, verdict.port) or _add(policy, address, verdict.port)
    return _route(policy, address, verdict.port) or _remove(policy, address, [key for key in address.copies if key != wanted])


def next_announcement(policy: Policy, address: Address) -> Action | None:
    """An announcement that is due."""
    if not address.announce_s or address.announce_s[0] > policy.now_s:
        return None
    verdict = policy.verdicts.get(address.ip)
    if verdict is None or address.place != verdict.port or not policy.is_usable(verdict.port):
        return None
    action = Announce(address.ip, verdict.port)
    return action if address.has_on(verdict.port) and policy.allows(action) else None


def _trim(policy: Policy, address: Address, port: str) -> Action | None:
    """Room for another copy: what is of no use goes first, then what is on unusable ports, then the youngest.

    An IPv6 address can be on an interface only once: one with another prefix is in the way. An IPv4 address can be there with both.
    """
    in_the_way = [key for key, copy in address.copies.items() if copy.failed or (address.managed.is_ipv6 and key[0] == port)]
    if not in_the_way and len(address.copies) < 2:
        return None
    rest = sorted(address.copies, key=lambda key: (policy.is_usable(key[0]), -address.copies[key].since_s))
    return _remove(policy, address, in_the_way or rest)


def _add(policy: Policy, address: Address, port: str) -> Action | None:
    is_full = len(address.copies) >= 2 or (address.managed.is_ipv6 and address.has_on(port))
    must_wait = not address.copies and policy.now_s < address.put_back_s
    if is_full or must_wait or not policy.is_present(port):
        return None
    action = AddAddress(address.ip, port, address.prefix_on(port), guest=port != address.managed.home)
    return action if policy.allows(action) else None


def _route(policy: Policy, address: Address, port: str) -> Action | None:
    if policy.config.routing != "rules" or not policy.is_present(port):
        return None
    routes, rule = EnsureRoutes(port), SwitchRule(address.ip, port)
    if policy.lacks_routes(port) and policy.allows(routes):
        return routes
    return rule if address.rule_port != port and policy.allows(rule) else None


def _remove(policy: Policy, address: Address, keys: list[Key]) -> Action | None:
    actions = [RemoveAddress(address.ip, port, prefix) for port, prefix in keys]
    return next((action for action in actions if policy.allows(action)), None)
