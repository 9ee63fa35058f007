"""A Python that has imported torch and quadriga once, and forks every process of the tests.

    python rank_pool.py SOCKET

A line of the socket asks for a process: its command line without the interpreter, its variables,
its folder, and the files of what it prints. It is answered with the process's number; another line
tells the exit code once it has ended. A fork has all that the interpreter's start takes seconds
for, and nothing of what another test has done. Where the socket closes, all of them are killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import quadriga
from quadriga.report import run

MODULES = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.hf_storage",
    "torch.profiler._cupti_monitor",
    "psutil",
)
"""What the package imports on first use, beside its own modules."""


def serve(control: socket.socket) -> dict[str, Any]:
    """Fork a process for each request; return the request in the process that is to serve it."""
    requests, children = control.makefile("r"), set()
    while True:
        asked, _, _ = select.select([control], [], [], 0.005 if children else None)
        if asked:
            line = requests.readline()  # the other end waits for the answer before it asks again
            if not line:
                for child in children:
                    for kill in (os.killpg, os.kill):  # with its own forks, or before it had any
                        with contextlib.suppress(ProcessLookupError):
                            kill(child, signal.SIGKILL)
                sys.exit(0)
            child = os.fork()
            if child == 0:
                requests.close()
                control.close()
                return dict(json.loads(line))
            children.add(child)
            tell(control, {"started": child})
        for child in list(children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                children.remove(pid)
                tell(control, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def tell(control: socket.socket, message: dict[str, int]) -> None:
    """Write one line, unless nobody reads it any more: that is noticed by the next request."""
    with contextlib.suppress(BrokenPipeError):
        control.sendall(json.dumps(message).encode() + b"\n")


def become(request: dict[str, Any]) -> None:
    """Make this fork what the interpreter would be at the start of the command."""
    os.setsid()
    faulthandler.enable()  # a rank that has to be ended tells where it stood
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    for number, path in ((1, request["out"]), (2, request["err"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    words = request["words"]
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = os.getcwd() if words[0] == "-m" else str(Path(words[0]).parent)
    sys.path[:1] = [first, *(place for place in places if place)]


def main() -> None:
    """Import, and serve; a fork runs its command and leaves through the interpreter's end."""
    own = [module.name for module in pkgutil.walk_packages(quadriga.__path__, "quadriga.")]
    for name in (*MODULES, *own):
        if not name.endswith(".__main__"):
            importlib.import_module(name)
    run.curves_of = lambda *arguments: []  # a second for each run, and no test looks at them
    gc.collect()
    gc.freeze()  # the collections of a fork look at its own objects alone
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    become(request)
    if request["words"][0] == "-m":
        sys.argv = request["words"][1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = request["words"]
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
