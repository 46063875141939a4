"""The `compress` command: an interruption is said in words even while the rest is still being imported."""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

INTERRUPTED = 130
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Interruption:
    """The first signal interrupts; the second is ignored while the run ends; the third ends it at once."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            raise KeyboardInterrupt
        if self.count > 2:
            os._exit(INTERRUPTED)  # nothing is left half-written: files are renamed when they are whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is that of `compressor.commands`, or 130 if it was interrupted, or told to end."""
    interruption = _Interruption()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, interruption)
    try:
        from compressor.commands.main import main as command

        return command(arguments)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone
            if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK") != "0":
                return INTERRUPTED  # the first of several processes says it
            print("interrupted; what is finished is kept, and the same command resumes from there", file=sys.stderr)
        return INTERRUPTED
    except OSError:
        if not interruption.count:
            raise
        return INTERRUPTED  # the terminal went first, and nothing can be said


if __name__ == "__main__":
    sys.exit(main())
