"""How the tool speaks with the programs that it compares: each a process of its own that answers lines.

    load BATCH NUMBER PATH   take the first BATCH images of PATH, float32 [images, channels, height, width] as raw bytes;
                             NUMBER is the timestep (task step), the number of steps (ddim), ignored (train)
    run TIMES                do the task so often, timing each: "ok SECONDS SECONDS ..."
    save PATH                write the last result, float32: the prediction, the images, or the losses of the last run

A program first says "ok VERSION" or "error WHY", and answers every line with "ok ..." or "error WHY".

One that is not asked anything is stopped (SIGSTOP), all its threads with it: some runtimes let their threads spin while they
wait for work, and would take the processor from the one that is being measured.
"""

import os
import signal
import subprocess
import threading


class Refused(Exception):
    """What a program answered instead of doing what it was asked, or how it ended."""


def environment(more=()):
    """This process's, less the settings of OpenMP that it happens to have, and what is given."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    return {**others, **dict(more)}


class Program:
    def __init__(self, command, settings, limit):
        """Starts it with these settings in its environment and waits for its first line. limit: seconds that any answer may
        take."""
        self.limit = limit
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(settings)
        )
        try:
            self.version = self.answer()
        except BaseException:
            self.close()
            raise
        self.stop()

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, *words):
        """Sends a line and returns what the program answers after "ok"."""
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            return self.answer()
        except BrokenPipeError:
            raise Refused(f"it ended with {self.process.wait()}") from None
        finally:
            self.stop()

    def answer(self):
        too_late = threading.Event()

        def end():
            too_late.set()
            self.process.kill()

        timer = threading.Timer(self.limit, end)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if too_late.is_set():
            raise Refused(f"no answer in {self.limit:g} seconds")
        status, _, rest = line.strip().partition(" ")
        if status == "ok":
            return rest
        raise Refused(rest if status == "error" else f"it ended with {self.process.wait()}" if not line else f"it said {line!r}")

    def run(self, times):
        return [float(word) for word in self.ask("run", times).split()]

    def peak_memory(self):
        """The most memory that it had resident so far, in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        raise Refused("the system does not tell its peak memory")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
