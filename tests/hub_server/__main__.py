"""Runs a test Hub until it is interrupted: ``PYTHONPATH=tests python -m hub_server --port 8100 --user me:hf_test``."""

from __future__ import annotations

import argparse

from hub_server import HubServer, Store


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", action="append", default=[], help="NAME:TOKEN, more than once if wanted")
    options = parser.parse_args()
    store = Store()
    for account in options.user or ["me:hf_test"]:
        store.add_user(*account.split(":", 1))
    server = HubServer(store, port=options.port)
    print(f"HF_ENDPOINT={server.url} HF_HUB_DISABLE_XET=1", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
