"""Runs a program under the system call rules of a unit, which systemd itself would set only as the first process.

    confine.py FAMILIES CALLS PROGRAM [ARGUMENT]...

FAMILIES and CALLS are lists with commas. A call that is not among CALLS kills the program, so that none is failed by the rules
unseen; a socket of another family fails as it does under systemd; memory is never both written and run.
"""

import ctypes
import errno
import os
import socket
import sys

PR_SET_NO_NEW_PRIVS = 38
KILL, ALLOW = 0x80000000, 0x7FFF0000
PROT_WRITE, PROT_EXEC = 2, 4
EQUAL, MASKED_EQUAL = 4, 7


class Comparison(ctypes.Structure):
    _fields_ = [("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def main():
    families, calls, *program = sys.argv[1:]
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(KILL)))

    def add(action, call, *comparisons):
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:
            array = (Comparison * len(comparisons))(*comparisons)
            check(library.seccomp_rule_add_array(rules, ctypes.c_uint32(action), number, len(comparisons), array), call)

    for call in calls.split(","):
        if call == "socket":
            allowed = {getattr(socket, family) for family in families.split(",")}
            for family in range(46):
                action = ALLOW if family in allowed else 0x00050000 | errno.EAFNOSUPPORT
                add(action, call, Comparison(0, EQUAL, family, 0))
        elif call == "mmap":
            for bits in (0, PROT_WRITE, PROT_EXEC):
                add(ALLOW, call, Comparison(2, MASKED_EQUAL, PROT_WRITE | PROT_EXEC, bits))
        elif call == "mprotect":
            add(ALLOW, call, Comparison(2, MASKED_EQUAL, PROT_EXEC, 0))
        else:
            add(ALLOW, call)
    check(ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    check(library.seccomp_load(rules), "load")
    os.execv(program[0], program)


def check(result, what):
    if result != 0:
        sys.exit(f"confine.py: {what}: {os.strerror(-result)}")


main()
