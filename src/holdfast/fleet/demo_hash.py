"""What ``sha256sum`` prints, where there is none: a digest and a name per line."""

import hashlib
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(hashlib.sha256(Path(name).read_bytes()).hexdigest(), "", os.fsencode(name).decode(errors="replace"))
