"""Files of the Hugging Face hub, in the cache of its own client, which HF_HOME, HF_TOKEN and HF_ENDPOINT configure."""

import re
from collections.abc import Sequence
from pathlib import Path

from charm.runtime.errors import UserError, first_line, in_one_line
from charm.runtime.waiting import hub_address, reaching_hub

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)  # of a repository, user/name


def fetch(name: str, files: Sequence[str], revision: str | None = None, remedy: str = "") -> Path:
    """Returns the folder that holds files of a repository, downloaded if need be; without the hub, what was before.

    Args:
        name: user/name.
        files: names or patterns; nothing else is downloaded, code least of all.
        revision: a branch, a tag or a commit; None for the main branch.
        remedy: what to do without the hub.

    Raises:
        UserError: there is no such repository, revision or file, or no way to it.
    """
    from huggingface_hub import snapshot_download

    with reaching_hub() as missing:
        try:
            wanted = list(files)
            return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, endpoint=hub_address()))
        except Exception as error:  # the hub's client raises some twenty kinds, of httpx and of its own
            at = f"{name} at {revision}" if revision else name
            problem = f"cannot download {hub_address()}/{at} ({missing or first_line(error)})"
            raise UserError(in_one_line(f"{problem}{': ' if remedy else ''}{remedy}")) from error
