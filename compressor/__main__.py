"""`python -m compressor`, which launchers of several processes start: the same as `compress`."""

import sys

from compressor_command import main

if __name__ == "__main__":
    sys.exit(main())
