"""Standard output, whose reader may go at any time (`| head`): that is no error of ours."""

from __future__ import annotations

import os
import sys


def write_out(text: str) -> bool:
    """Write `text` to standard output as UTF-8; False once nobody reads it any more, and from then on silently."""
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail again at exit: let it go where nobody minds.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
