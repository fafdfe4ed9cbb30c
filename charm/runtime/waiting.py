"""Waits for others, each with an end: a call into a library, an answer from the network."""

import contextlib
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from http.client import HTTPException
from typing import TypeVar

T = TypeVar("T")

_CHECK_EVERY = 0.2  # seconds
_HUB_PATIENCE = 8.0  # seconds


def within(seconds: float, work: Callable[[], T], check: Callable[[], None] = lambda: None) -> T:
    """Returns work() if it ends in time. It runs in a thread, which is left behind if it does not.

    Time limits of libraries often hold for a step of many only, or not for a name's look-up or an odd answer.

    Meanwhile `check` is called again and again; it may raise. Raises TimeoutError if the work takes longer.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    end = time.monotonic() + seconds
    while not done.done():
        check()
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {seconds:g} s")
        wait([done], min(_CHECK_EVERY, left))
    return done.result()


def hub_address() -> str:
    """Returns the address of the hub that weights are downloaded from: $HF_ENDPOINT or the Hugging Face hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@contextlib.contextmanager
def reaching_hub() -> Iterator[str]:
    """Yields "" if the hub answers, else why it does not; its client then looks into its cache alone within the block.

    Left to itself the client tries for 24 seconds per file.
    """
    from huggingface_hub import constants

    known = constants.HF_HUB_OFFLINE
    missing = "HF_HUB_OFFLINE is set" if known else _ask_hub()
    constants.HF_HUB_OFFLINE = bool(missing)
    try:
        yield missing
    finally:
        constants.HF_HUB_OFFLINE = known


def _ask_hub() -> str:
    """Returns "" if the hub answers, else why it does not."""

    def ask() -> None:
        # Whatever answers is a hub as far as this function knows: a refusal, an odd certificate.
        with contextlib.suppress(urllib.error.HTTPError, HTTPException):
            urllib.request.urlopen(urllib.request.Request(hub_address(), method="HEAD"), timeout=_HUB_PATIENCE).close()

    try:
        within(_HUB_PATIENCE, ask)
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):
            return ""
        return f"{hub_address()} cannot be reached: {reason}"
    return ""
