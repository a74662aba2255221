"""Become another program that ends with its parent and, where asked, runs as another user than root.

Run by path, with the standard library alone, so that it costs a few milliseconds:

    python -I -S launch.py PARENT_PID SIGNAL_NUMBER USER|- FOLDER|- PROGRAM [ARGUMENT…]

- The kernel sends SIGNAL_NUMBER to PROGRAM when the parent dies, whatever it dies of (Linux only; elsewhere the
  records in the state folder are what ends left-behind processes).
- USER is who PROGRAM runs as. Postgres refuses to run as root, so a root session names an unprivileged user here.
  No folder is opened up for it: where PROGRAM or FOLDER lie below one that only root may enter (`/root/project`),
  PROGRAM keeps the one capability that lets it pass.

Exits 111 when it cannot do what it was asked, with the reason on standard error.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAP_SETPCAP = 8
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _set_capabilities(libc: ctypes.CDLL, mask: int) -> bool:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    data[0].effective = data[0].permitted = data[0].inheritable = mask
    return bool(libc.capset(ctypes.byref(header), ctypes.byref(data)) == 0)


def _become(libc: ctypes.CDLL, user: str, program: str, folder: str) -> None:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    # access() asks for the real user, without capabilities: exactly the question.
    reachable = os.access(program, os.X_OK) and (folder == "-" or os.access(folder, os.R_OK | os.W_OK | os.X_OK))
    if reachable:
        _set_capabilities(libc, 0)
        return
    kept = (
        _set_capabilities(libc, 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_SETPCAP)
        # Else access(), by which Postgres looks for its own programs, answers as if there were no capability.
        and libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0
        and _set_capabilities(libc, 1 << _CAP_DAC_OVERRIDE)
        and libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0) == 0
    )
    if not kept:
        raise PermissionError(f"the user {user} may enter neither of {program} and {folder}")


def main(arguments: list[str]) -> int:
    parent, signal_number, user, folder, program = arguments[:5]
    try:
        if sys.platform.startswith("linux"):
            libc = ctypes.CDLL(None, use_errno=True)
            if user != "-":
                _become(libc, user, program, folder)
            # After the change of user: a change of credentials clears it.
            libc.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
            if os.getppid() != int(parent):  # it died before the line above
                return 111
        elif user != "-":
            entry = pwd.getpwnam(user)
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        os.execv(program, [program, *arguments[5:]])
    except OSError as error:
        sys.stderr.write(f"cannot start {program}: {error}\n")
    return 111


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
