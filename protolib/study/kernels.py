"""Kernels without their start: forked from one process that has imported what the notebooks
import.

A notebook's kernel of its own takes five seconds of CPU before its first cell, as much as all that
a run of preset lean trains. Here one process, the nest, imports once and becomes a kernel by a
fork: each starts in the same state, shares nothing, and can be killed alone. The nest ends with the
process that started it, and its kernels with it. `python -m protolib.study.kernels` is the nest.
"""

import atexit
import contextlib
import importlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from protolib import files

# what the notebooks import, and what their first steps would
IMPORTS = (
    "ipykernel.kernelapp matplotlib.pyplot pandas torch._dynamo accelerate timm "
    "protolib.experiment protolib.study.ledger protolib.study.figures"
).split()
COLUMNS = 20  # of a table, as pandas shows them in a kernel
INLINE = "module://matplotlib_inline.backend_inline"  # as a kernel sets it


class Nest:
    """The process that kernels are forked from, under one set of variables."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "protolib.study.kernels"]
        env = {"MPLBACKEND": INLINE} | os.environ
        # a session of its own: Ctrl-C is for us, who then end its kernels
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True
        )
        self.lock, self.begun = Lock(), SimpleQueue()
        self.ended: dict[int, int] = {}  # exit codes by process
        self.peak_rss_mb = 0.0  # of the largest kernel that has ended
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            said = json.loads(line)
            if "begun" in said:
                self.begun.put(said["begun"])
            else:
                self.peak_rss_mb = max(self.peak_rss_mb, said["rss_mb"])
                self.ended[said["ended"]] = said["code"]
        self.begun.put(0)  # whoever waits for a kernel
        self.process.wait()

    @property
    def alive(self) -> bool:
        """Whether it can be asked for a kernel, and its kernels may run."""
        return self.process.poll() is None

    def fork(self, arguments: Sequence[str], env: Mapping[str, str], cwd: str) -> int:
        """A kernel with these arguments of ipykernel_launcher: its process, 0 where the nest has
        ended."""
        asked = {"arguments": arguments, "env": dict(env), "cwd": cwd}
        with self.lock, contextlib.suppress(BrokenPipeError):
            if self.alive:
                self.process.stdin.write(json.dumps(asked).encode() + b"\n")
                self.process.stdin.flush()
                return self.begun.get()
        return 0


class Kernel:
    """A forked kernel as jupyter_client wants one: what it asks of a subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, nest: Nest, pid: int):
        self.nest, self.pid = nest, pid

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.nest.ended.get(self.pid, None if self.nest.alive else -signal.SIGKILL)

    wait = poll  # only asked when it has ended

    def send_signal(self, number: int) -> None:
        """To it and to all that it has started; nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


_nests: dict[str | None, Nest] = {}
_opening = Lock()


def nest() -> Nest:
    """The nest of this process; another one for another number of threads, which torch reads when
    it is imported."""
    threads = os.environ.get("OMP_NUM_THREADS")
    with _opening:
        if threads not in _nests or not _nests[threads].alive:
            _nests[threads] = Nest()
        return _nests[threads]


def peak_rss_mb() -> float:
    """Largest resident memory of a forked kernel that has ended, in MB of 10^6 bytes, 0 without
    one."""
    return max((own.peak_rss_mb for own in _nests.values()), default=0.0)


class Forked(LocalProvisioner):
    """Starts a kernel by a fork; by its command where that cannot be."""

    process: Any

    async def launch_kernel(self, cmd: list[str], **kwargs: Any):
        own = nest()
        pid = own.fork(cmd[cmd.index("-f") :], kwargs["env"], str(kwargs.get("cwd") or os.getcwd()))
        if not pid:
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.pgid = Kernel(own, pid), pid, pid
        return self.connection_info


@cache
def connections() -> Path:
    """The folder of this process for its kernels' connection files, which hold keys. It goes when
    the process ends; where it was killed, when the next one starts."""
    left = contextlib.ExitStack()
    atexit.register(left.close)
    return left.enter_context(files.scratch(tempfile.gettempdir(), "protolib-kernels-"))


class Manager(AsyncKernelManager):
    """A kernel manager of notebook clients whose kernels are forked, on Linux: other systems' own
    libraries do not outlive a fork."""

    async def _async_pre_start_kernel(self, **kw: Any):
        self.kernel_id = self.kernel_id or os.urandom(16).hex()
        self.connection_file = str(connections() / f"{self.kernel_id}.json")
        if self.provisioner is None and sys.platform == "linux":
            self.provisioner = Forked(
                kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
            )
        return await super()._async_pre_start_kernel(**kw)


# in the nest


def main() -> None:
    """Import, then fork a kernel for each line of stdin, and tell of those that end, until stdin
    ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _ended_by_its_parent():
        for name in IMPORTS:
            importlib.import_module(name)
    # pandas looks around when it is imported: no kernel yet, so a terminal, and wide tables are cut
    sys.modules["pandas"].set_option("display.max_columns", COLUMNS)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    kernels: set[int] = set()
    with selectors.DefaultSelector() as waiting:
        waiting.register(0, selectors.EVENT_READ)
        waiting.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fd == woken:
                    os.read(woken, 1 << 10)
                    _reap(kernels)
                elif line := sys.stdin.buffer.readline():
                    if not (pid := os.fork()):
                        _become(json.loads(line), wake)
                    os.setpgid(pid, pid)  # here too: it may be killed before it has begun
                    kernels.add(pid)
                    _say(begun=pid)
                else:
                    for pid in kernels:
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(pid, signal.SIGKILL)
                    os._exit(0)  # at once: torch takes seconds to be taken down


@contextlib.contextmanager
def _ended_by_its_parent() -> Iterator[None]:
    """Look every half second whether anybody is left to fork for: imports take seconds, on a full
    machine half a minute."""
    stdin = select.poll()
    stdin.register(0, 0)  # nothing but the end of who writes there

    def look(*_: Any) -> None:
        if stdin.poll(0):
            os._exit(0)

    signal.signal(signal.SIGALRM, look)
    signal.siginterrupt(signal.SIGALRM, False)  # for libraries that do not call again
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _reap(kernels: set[int]) -> None:
    """Tell of every kernel that has ended."""
    for pid in list(kernels):
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            kernels.remove(pid)
            code = os.waitstatus_to_exitcode(status)
            _say(ended=pid, code=code, rss_mb=used.ru_maxrss * 1024 / 1e6)


def _say(**said: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens: stdin ends next
        os.write(1, json.dumps(said).encode() + b"\n")


def _become(asked: dict, wake: int) -> None:
    """Turn this process, a fork of the nest, into a kernel; never returns."""
    try:
        os.setpgid(0, 0)  # a signal for it reaches what it starts, and nobody else
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.close(wake)
        # the pipes are the nest's: its end must show to those who hold their other ends
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        sys.stdin = open(0, closefd=False)
        os.environ.clear()
        os.environ |= asked["env"]
        os.chdir(asked["cwd"])
        # it ends by itself where the nest is killed
        parent = f"--IPKernelApp.parent_handle={os.getppid()}"
        sys.argv = ["ipykernel_launcher", *asked["arguments"], parent]
        from ipykernel import kernelapp

        kernelapp.launch_new_instance()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
