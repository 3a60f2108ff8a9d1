"""The peer: `rsync -a --delete`, pushing to a daemon on a loopback of its own."""

import os
import subprocess
import threading
import time
from pathlib import Path

from tests.outside.network import free_ports, lo_bytes
from tests.outside.processes import cpu_of_reaped_children, cpu_seconds, descendants, peak_rss, spawn

from .measured import Run

MODULE = "mirror"
LOOK_INTERVAL = 0.05


class Rsync:
    """An rsync daemon that keeps `mirror`."""

    def __init__(self, folder: Path, has_own_network: bool) -> None:
        folder.mkdir(parents=True)
        self.mirror = folder / MODULE
        self.mirror.mkdir()
        self.has_own_network = has_own_network
        [self.port] = free_ports(1)
        config = folder / "rsyncd.conf"
        # As root it would otherwise serve as nobody; anybody else can only be who they are.
        keeps_owners = "" if os.geteuid() else "uid = 0\ngid = 0\n"
        config.write_text(
            f"use chroot = no\n{keeps_owners}log file = {folder}/log\n"
            f"address = 127.0.0.1\n[{MODULE}]\npath = {self.mirror}\nread only = no\n"
        )
        daemon = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={self.port}"]
        if has_own_network:
            daemon = ["unshare", "-n", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *daemon]
        self.daemon = spawn(daemon)
        self._wait_ready()

    def push(self, source: Path) -> Run:
        """Makes the mirror like `source`, and durable."""
        command = ["rsync", "-a", "--delete", "--exclude=/.understudy", f"{source}/",
                   f"rsync://127.0.0.1:{self.port}/{MODULE}/"]
        wire = lo_bytes(self.daemon.pid)
        cpu = self._cpu()
        begun = time.monotonic()
        client = subprocess.Popen(self._inside(command), stderr=subprocess.PIPE, text=True)
        peaks = _Peaks(client.pid, self.daemon.pid)
        errors = client.stderr.read()
        _, status, usage = os.wait4(client.pid, 0)
        wall = time.monotonic() - begun
        client.returncode = os.waitstatus_to_exitcode(status)
        subprocess.run(["sync", "-f", self.mirror], check=True)
        durable = time.monotonic() - begun
        peaks.stop()
        self._wait_reaped()
        if client.returncode:
            reason = "; ".join(errors.strip().splitlines())
            raise RuntimeError(f"rsync ended with {client.returncode}: {reason}")
        return Run(
            seconds={"wall": wall, "durable": durable},
            cpu_seconds=usage.ru_utime + usage.ru_stime + self._cpu() - cpu,
            wire_bytes=lo_bytes(self.daemon.pid) - wire,
            rss_bytes=[peaks.source, peaks.target],
        )

    def stop(self) -> None:
        self.daemon.terminate()
        self.daemon.wait()

    def _inside(self, command: list) -> list:
        if not self.has_own_network:
            return command
        return ["nsenter", f"--net=/proc/{self.daemon.pid}/ns/net", "--", *command]

    def _cpu(self) -> float:
        return cpu_seconds(self.daemon.pid) + cpu_of_reaped_children(self.daemon.pid)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 10
        probe = self._inside(["rsync", f"rsync://127.0.0.1:{self.port}/"])
        while subprocess.run(probe, capture_output=True).returncode:
            if time.monotonic() > deadline or self.daemon.poll() is not None:
                raise RuntimeError("the rsync daemon does not answer")
            time.sleep(0.05)

    def _wait_reaped(self) -> None:
        """The processor time of a child counts when it has been waited for."""
        deadline = time.monotonic() + 10
        while descendants(self.daemon.pid):
            if time.monotonic() > deadline:
                raise RuntimeError("the rsync daemon's children do not end")
            time.sleep(0.02)


class _Peaks:
    """Looks now and then how much memory a push takes on either side.

    The kernel keeps the peak of a process only while it lives, and what `wait4` tells of memory is at
    least that of the program that forked.
    """

    def __init__(self, client: int, daemon: int) -> None:
        self._client, self._daemon = client, daemon
        self._peaks: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def source(self) -> int:
        return self._peaks.get(self._client, 0)

    @property
    def target(self) -> int:
        return sum(peak for pid, peak in self._peaks.items() if pid != self._client)

    def _look(self) -> None:
        while True:
            for pid in [self._client, *descendants(self._daemon)]:
                self._peaks[pid] = max(self._peaks.get(pid, 0), peak_rss(pid))
            if self._ended.wait(LOOK_INTERVAL):
                return
