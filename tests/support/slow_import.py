"""A module whose import does not end before it is ended."""

import time

time.sleep(1_000)


def f() -> None:
    """Never reached."""
