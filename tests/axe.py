"""axe-core, the checker of accessible pages, from npm where npm and the network are at hand.

from tests.axe import find_faults
assert find_faults(page) == []      # page: of playwright; skips the test where there is no axe-core
"""

import functools
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

VERSION = "4.11.0"
_SECONDS = 60  # for a download of 3 MB, which npm keeps


@functools.cache
def load_axe() -> str:
    """Its script; "" where it cannot be had."""
    npm = shutil.which("npm")
    if npm is None:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--prefer-offline", "--pack-destination", folder, f"axe-core@{VERSION}"]
        try:
            subprocess.run(command, cwd=folder, capture_output=True, timeout=_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as files:
            script = files.extractfile("package/axe.min.js")
            assert script is not None
            return script.read().decode()


def find_faults(page: Any) -> list[str]:
    """A line per fault of a page as it is now: its rule, where it is, and what is wrong."""
    script = load_axe()
    if not script:
        pytest.skip(f"needs axe-core: `npm pack axe-core@{VERSION}` does not work here")
    page.evaluate(script)  # by the debugger, which no Content-Security-Policy holds up
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{fault['id']}: {node['target'][0]}: {' '.join(node['failureSummary'].split())}"
        for fault in found["violations"]
        for node in fault["nodes"]
    ]
