"""Injects a fault at the k-th file operation of a process, and runs such a process.

Operations are observed with Python's profile hook, at each call of a C function, so it does not matter which of them a
writer uses. What a C library does internally is not observed.
"""

import hashlib
import itertools
import os
import sys
import threading

from solar_plugins.errors import SolarError

READING = {"pread", "preadv", "read", "readinto", "readall", "stat", "lstat", "fstat", "listdir", "scandir", "flock"}
WRITING = {
    *("open", "pwrite", "pwritev", "write", "writev", "writelines", "flush", "close", "fsync", "fdatasync", "truncate"),
    *("ftruncate", "posix_fallocate", "copy_file_range", "sendfile", "splice", "rename", "replace", "mkdir", "rmdir"),
    *("unlink", "remove", "link", "symlink", "chmod", "fchmod", "utime", "ioctl"),
}


def content(directory):
    """Name and hash of every file in a directory."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def times(directory):
    return {path.name: path.stat().st_mtime_ns for path in sorted(directory.iterdir())}


def strike(at, fault, names):
    """Call ``fault`` just before the ``at``-th operation of this process whose name is one of ``names``."""
    numbers = itertools.count(1)

    def profile(frame, event, function):
        if event != "c_call" or function.__name__ not in names:
            return
        owner = getattr(function, "__self__", None)
        if owner in (sys.stdout, sys.stderr):
            return
        on_files = function.__module__ in ("posix", "_io", "io", "fcntl") or type(owner).__module__ in ("_io", "posix")
        if on_files and next(numbers) == at:
            fault(function.__name__)

    threading.setprofile(profile)
    sys.setprofile(profile)


def in_child(work):
    """Exit status of ``work`` in a forked process (negative for a signal), and the text of its error.

    0: done. 3: `SolarError`. 4: anything else.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 4
        try:
            work()
            status = 0
        except SolarError as error:
            status = 3
            os.write(writer, str(error).encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
