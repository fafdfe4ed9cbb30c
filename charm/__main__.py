"""The command `charm`, which is the pipeline's and runs in a clone of the repository; the library alone has none."""

import importlib
import sys


def main() -> None:
    try:
        command = importlib.import_module("pipeline.command")
    except ModuleNotFoundError as error:
        sys.exit(
            f"charm: there is no module {error.name} here. The command runs in a clone of the repository, `uv run "
            "charm ...`; what is installed here is the library: `from charm import CharmScorer`"
        )
    command.main()


if __name__ == "__main__":
    main()
