"""A Hub to test against: see README.md beside this file. A test fixture, not a product."""

from hub_server.faults import Fault
from hub_server.server import HubServer
from hub_server.store import Store

__all__ = ["Fault", "HubServer", "Store"]
