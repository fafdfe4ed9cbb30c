"""A server on a free port of the loopback, in a thread of this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from charm.app.access import Access
from charm.app.limits import SERVER_LIMITS, ServerLimits
from charm.app.server import bind, build_app, make_server
from charm.scorer import CharmScorer

ALONE = Access()


@contextmanager
def run_server(scorer: CharmScorer, limits: ServerLimits = SERVER_LIMITS, access: Access = ALONE) -> Iterator[str]:
    """Gives its address; ends it in the end."""
    with bind(access.host, 0) as bound:
        server = make_server(build_app(scorer, access, limits), limits, access.log)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
