"""Exactly-once calls over RDS sockets; see docs/calls.md."""
