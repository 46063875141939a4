"""The `compress` command: an interruption is said in words even while the rest is still being imported."""

import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is that of `compressor.commands`, or 130 if it was interrupted, or told to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from compressor.commands.main import main as command

        return command(arguments)
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
