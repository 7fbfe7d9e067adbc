"""scripts/fetch_libtorch.py against small wheels on a loopback server: what arrives, and every way it can fail.

    python3 tests/setup/test_fetch_libtorch.py

Needs no network. pip is played by a script that prints what pip prints, but for one test that asks the real one.
"""

import base64
import contextlib
import errno
import hashlib
import http.server
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zipfile
from unittest import mock

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(HERE, "..", "..", "scripts", "fetch_libtorch.py")
sys.dont_write_bytecode = True
spec = importlib.util.spec_from_file_location("fetch_libtorch", SCRIPT)
fetch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch)

TORCH, RUNTIME, CUPTI = (wheel["wheel"] for wheel in fetch.WHEELS)
LIBRARIES = ["libc10.so", "libcudart.so.13", "libcupti.so.13", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so"]

# Says what `pip index versions -vv` says, and plays `pip download`. FAKE_PIP holds the index's address, or a mode.
FAKE_PIP = r"""
import os, shutil, sys
mode, served = os.environ["FAKE_PIP"], os.environ["FAKE_SERVED"]
arguments = sys.argv[1:]
if arguments[0] == "index":
    if mode == "old":
        sys.exit('ERROR: unknown command "index"')
    if mode == "offline":
        print("WARNING: Retrying after connection broken by 'NewConnectionError(...)': /simple/torch/")
        sys.exit("ERROR: No matching distribution found for " + arguments[-1])
    print("WARNING: pip index is currently an experimental command.")
    for name in sorted(os.listdir(served)):
        print("  Skipping link: none of the wheel's tags are compatible: %s/cp39-%s (from %s)" % (mode, name, mode))
        print("  Found link %s/%s#sha256=00 (from %s/simple/) (requires-python:>=3.10), version: 1" % (mode, name, mode))
elif arguments[0] == "download":
    name = arguments[-1].split("==")[0].replace("-", "_")
    if mode == "offline" or os.environ.get("FAKE_PIP_DOWNLOAD") == "fails":
        sys.exit("ERROR: Could not install packages due to an OSError")
    for wheel in os.listdir(served):
        if wheel.startswith(name + "-"):
            shutil.copy(os.path.join(served, wheel), arguments[arguments.index("--dest") + 1])
"""


def noise(size, seed):
    """Bytes that do not compress."""
    return hashlib.shake_128(b"%d" % seed).digest(size)


def make_wheel(path, files):
    """A zip with these (name, bytes) in order, and RECORD near the end; returns RECORD's sha256."""
    dist = "-".join(os.path.basename(path).split("-")[:2]) + ".dist-info"
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files:
            name = name.replace("DIST", dist)
            out.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            rows.append("%s,sha256=%s,%d" % (name, digest, len(data)))
        record = ("\n".join(rows + [dist + "/RECORD,,"]) + "\n").encode()
        out.writestr(dist + "/RECORD", record)
    return hashlib.sha256(record).hexdigest()


def make_wheels(folder, cpu_size=300000):
    """Wheels like the real ones in small; returns a WHEELS with their pins."""
    files = {
        TORCH: [
            ("torch/unwanted.py", noise(2 << 20, 1)),
            ("torch/include/ATen/ATen.h", b"#pragma once\n"),
            ("torch/include/torch/headeronly/version.h", version_header("2.11.0")),
            ("torch/lib/libc10.so", noise(5000, 2)),
            ("torch/lib/libgomp.so.1", noise(3000, 3)),
            ("torch/lib/libtorch.so", noise(2000, 4)),
            ("torch/lib/libtorch_cpu.so", noise(cpu_size, 5)),
            ("torch/lib/libtorch_cuda.so", noise(3 << 20, 6)),
            ("DIST/licenses/LICENSE", b"licence"),
            ("DIST/licenses/NOTICE", b"notice"),
        ],
        RUNTIME: [("nvidia/cu13/include/x.h", b"x"), ("nvidia/cu13/lib/libcudart.so.13", noise(9000, 7)),
                  ("DIST/licenses/License.txt", b"nvidia's")],
        CUPTI: [("nvidia/cu13/lib/libcupti.so.13", noise(7000, 8)), ("nvidia/cu13/lib/libother.so", b"x")],
    }
    return [dict(wheel, record=make_wheel(os.path.join(folder, wheel["wheel"]), files[wheel["wheel"]]))
            for wheel in fetch.WHEELS]


def version_header(version):
    return "".join("#define TORCH_VERSION_%s %s\n" % pair
                   for pair in zip(("MAJOR", "MINOR", "PATCH"), version.split("."))).encode()


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder. ranges: honour Range. cuts: how many more answers to break off halfway. pause: seconds for
    each 16 KB. status: answer this instead. sent: body bytes so far; requests: (name, Range)."""

    daemon_threads = True

    def __init__(self, folder):
        self.folder, self.ranges, self.cuts, self.pause, self.status = folder, True, 0, 0, None
        self.sent, self.requests = 0, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients that hang up are what is tested

    @property
    def address(self):
        return "http://127.0.0.1:%d" % self.server_address[1]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server, name = self.server, os.path.basename(self.path)
        server.requests.append((name, self.headers.get("Range")))
        if self.path.startswith("/simple/"):
            links = "".join('<a href="/files/%s">%s</a>' % (n, n) for n in os.listdir(server.folder))
            return self.answer(200, links.encode(), {"Content-Type": "text/html"})
        if server.status:
            return self.answer(server.status, b"")
        try:
            with open(os.path.join(server.folder, name), "rb") as f:
                data = f.read()
        except OSError:
            return self.answer(404, b"")
        asked = re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("Range") or "")
        if server.ranges and asked:
            start, end = int(asked.group(1)), min(int(asked.group(2)), len(data) - 1)
            span = "bytes %d-%d/%d" % (start, end, len(data))
            return self.answer(206, data[start:end + 1], {"Content-Range": span})
        return self.answer(200, data)

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts and len(body) > 100000:
            self.server.cuts -= 1
            body = body[:len(body) // 2]
        for at in range(0, len(body), 1 << 14):
            self.wfile.write(body[at:at + (1 << 14)])
            self.server.sent += len(body[at:at + (1 << 14)])
            time.sleep(self.server.pause)


class FetchTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.base = tempfile.mkdtemp(prefix="fetch-libtorch-test.")
        cls.addClassCleanup(shutil.rmtree, cls.base, True)
        cls.served = os.path.join(cls.base, "served")
        os.mkdir(cls.served)
        cls.wheels = make_wheels(cls.served)
        cls.fake_pip = os.path.join(cls.base, "fake_pip.py")
        with open(cls.fake_pip, "w") as f:
            f.write(FAKE_PIP)

    def setUp(self):
        self.home = tempfile.mkdtemp(dir=self.base)
        self.dest = os.path.join(self.home, "checkout", ".libtorch")
        self.server = Server(self.served)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        environment = {"FAKE_PIP": self.server.address, "FAKE_SERVED": self.served, "no_proxy": "127.0.0.1"}
        self.patch(mock.patch.dict(os.environ, environment))
        os.environ.pop("LIBTORCH", None)
        os.environ.pop("CC", None)
        self.patch(mock.patch.multiple(fetch, WHEELS=self.wheels, RETRY_DELAY=0.01, GAP=1 << 16,
                                       pip_command=lambda: [sys.executable, "-S", "-E", self.fake_pip]))

    def patch(self, patcher):
        patcher.start()
        self.addCleanup(patcher.stop)

    def run_main(self, *arguments):
        """(status, stdout, stderr) of the script, run in this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = fetch.main(list(arguments) or [self.dest])
        return status, out.getvalue(), err.getvalue()

    def assert_laid_out(self):
        self.assertEqual(sorted(os.listdir(os.path.join(self.dest, "lib"))), LIBRARIES)
        with open(os.path.join(self.dest, "build-version")) as f:
            self.assertEqual(f.read().strip(), "2.11.0")
        with open(os.path.join(self.dest, "lib", "libtorch_cpu.so"), "rb") as f:
            self.assertEqual(f.read(), noise(300000, 5))
        for name in ("include/ATen/ATen.h", "include/torch/headeronly/version.h", "LICENSE", "NOTICE", "LICENSE.nvidia"):
            self.assertTrue(os.path.isfile(os.path.join(self.dest, name)), name)
        with open(os.path.join(self.dest, "lib", "libtorch.so"), "rb") as f:
            self.assertEqual(f.read(4), b"\x7fELF")
        self.assertEqual(os.listdir(os.path.dirname(self.dest)), [".libtorch"])

    def assert_succeeds(self):
        status, out, err = self.run_main()
        self.assertEqual((status, err), (0, ""), out)
        self.assert_laid_out()
        return out

    def assert_fails(self, *words, arguments=()):
        status, out, err = self.run_main(*arguments)
        self.assertEqual(status, 1, out + err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertTrue(err.startswith("fetch_libtorch: "), err)
        self.assertNotIn("Traceback", err)
        for word in words:
            self.assertIn(word, err)
        self.assertFalse(os.path.exists(self.dest))

    # what it is for

    def test_lays_out_the_cpu_part_by_ranges(self):
        out = self.assert_succeeds()
        self.assertIn("(100%)", out)
        whole = os.path.getsize(os.path.join(self.served, TORCH))
        self.assertLess(self.server.sent, whole / 4)  # neither CUDA nor Python files
        self.assertTrue(all(asked for _, asked in self.server.requests))

    def test_second_call_does_nothing(self):
        self.assert_succeeds()
        asked = len(self.server.requests)
        start = time.perf_counter()
        self.assertEqual(self.run_main(), (0, "", ""))
        self.assertLess(time.perf_counter() - start, 0.05)
        self.assertEqual(len(self.server.requests), asked)

    def test_a_damaged_or_older_folder_is_laid_out_anew(self):
        self.assert_succeeds()
        os.remove(os.path.join(self.dest, "lib", "libc10.so"))
        self.assert_succeeds()
        with open(os.path.join(self.dest, "manifest"), "w") as f:
            f.write("libtorch 2.10.0 layout 1\n")
        self.assert_succeeds()

    def test_real_pip_names_the_wheels(self):
        os.environ.update(PIP_INDEX_URL=self.server.address + "/simple/", PIP_CONFIG_FILE=os.devnull,
                          PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="", PIP_NO_INDEX="0", PIP_RETRIES="0")
        pip = [sys.executable, "-m", "pip"]
        if subprocess.run(pip + ["--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            self.skipTest("%s has no pip" % sys.executable)
        self.assertEqual(fetch.address_from_pip(pip, CUPTI), "%s/files/%s" % (self.server.address, CUPTI))
        self.assertIn("--only-binary=:all:", fetch.pip_selection())

    # servers and networks

    def test_a_server_without_ranges_gives_the_whole_wheel(self):
        self.server.ranges = False
        self.assertIn("refuses range requests", self.assert_succeeds())
        self.assertGreater(self.server.sent, os.path.getsize(os.path.join(self.served, TORCH)))

    def test_broken_connections_continue_where_they_stopped(self):
        self.server.cuts = 2
        self.assert_succeeds()
        self.assertEqual(self.server.cuts, 0)
        self.assertLess(self.server.sent, 800000)

    def test_broken_connection_without_ranges_begins_again(self):
        self.server.ranges, self.server.cuts = False, 1
        self.assert_succeeds()

    def test_connection_that_keeps_breaking(self):
        self.server.ranges, self.server.cuts = False, 1000
        self.assert_fails("check the network", "set LIBTORCH")

    def test_no_network(self):
        os.environ["FAKE_PIP"] = "offline"
        self.assert_fails("pip cannot reach its package index", "check the network", "set LIBTORCH")

    def test_index_without_the_version(self):
        empty = os.path.join(self.home, "empty")
        os.mkdir(empty)
        os.environ["FAKE_SERVED"] = empty
        self.assert_fails("has no " + TORCH, "torch 2.11.0")

    def test_pip_fetches_what_is_closed_to_us(self):
        self.server.status = 403
        self.assert_succeeds()

    def test_pip_fetches_what_we_cannot_reach(self):
        os.environ["FAKE_PIP"] = "http://127.0.0.1:9"
        self.assert_succeeds()

    def test_old_pip_fetches_whole_wheels(self):
        os.environ["FAKE_PIP"] = "old"
        self.assert_succeeds()

    def test_local_wheels_are_read_in_place(self):
        os.environ["FAKE_PIP"] = "file://" + self.served
        self.assert_succeeds()
        self.assertEqual(len(os.listdir(self.served)), 3)

    def test_neither_we_nor_pip_get_the_wheel(self):
        self.server.status = 503
        os.environ["FAKE_PIP_DOWNLOAD"] = "fails"
        self.assert_fails("pip could not download", "run this again")

    # trust

    def serve_changed(self, change):
        folder = tempfile.mkdtemp(dir=self.home)
        for name in os.listdir(self.served):
            shutil.copy(os.path.join(self.served, name), folder)
        change(folder)
        self.server.folder = folder

    def test_another_record_is_refused(self):
        self.serve_changed(lambda folder: make_wheel(os.path.join(folder, CUPTI), [
            ("nvidia/cu13/lib/libcupti.so.13", b"evil")]))
        self.assert_fails(CUPTI, "not what is pinned")

    def test_a_changed_file_is_refused_and_not_kept(self):
        def change(folder):
            with open(os.path.join(folder, TORCH), "r+b") as f:
                data = bytearray(f.read())
                data[data.index(noise(300000, 5)[1000:1100])] ^= 1  # to be found, since noise does not compress
                f.seek(0)
                f.write(data)

        self.serve_changed(change)
        self.assert_fails(TORCH, "libtorch_cpu.so", "not what is pinned")
        self.server.folder = self.served
        self.assert_succeeds()

    def test_not_a_zip(self):
        self.serve_changed(self.put_html)
        self.assert_fails(TORCH, "not a zip file")

    def test_no_ranges_and_another_file(self):
        self.server.ranges = False
        self.serve_changed(self.put_html)
        self.assert_fails(TORCH, "not a zip file")

    @staticmethod
    def put_html(folder):
        with open(os.path.join(folder, TORCH), "wb") as f:
            f.write(b"<html>" * 50000)

    # interruption

    def child(self):
        """The script in a process of its own, on the wheels and the pip of these tests."""
        code = ("import importlib.util, sys\n"
                "s = importlib.util.spec_from_file_location('fetch_libtorch', %r)\n"
                "f = importlib.util.module_from_spec(s); s.loader.exec_module(f)\n"
                "f.WHEELS = %r; f.GAP = 1 << 16; f.BLOCK = 1 << 14; f.pip_command = lambda: %r\n"
                "sys.exit(f.main([%r]))" % (SCRIPT, self.wheels, fetch.pip_command(), self.dest))
        return subprocess.Popen([sys.executable, "-B", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                                universal_newlines=True)

    def interrupt(self, signal_number):
        self.server.pause = 0.02
        child = self.child()
        self.addCleanup(child.kill)
        part = os.path.join(self.dest + ".part", "downloads")
        deadline = time.time() + 10
        while time.time() < deadline:
            if os.path.isdir(part) and any(self.half(os.path.join(part, name)) for name in os.listdir(part)):
                break
            time.sleep(0.005)
        else:
            self.fail("the download did not get that far")
        child.send_signal(signal_number)
        out, err = child.communicate(timeout=10)
        self.server.pause = 0
        self.assertFalse(os.path.exists(self.dest))
        return child.returncode, err

    @staticmethod
    def half(path):
        match = re.search(r"\.(\d+)-(\d+)$", path)
        length = int(match.group(2)) - int(match.group(1)) if match else 0
        return length > 250000 and os.path.getsize(path) > 50000

    def test_killed_then_run_again_continues(self):
        self.interrupt(signal.SIGKILL)
        self.server.sent = 0
        self.assert_succeeds()
        self.assertLess(self.server.sent, 300000)

    def test_ctrl_c_is_one_line(self):
        status, err = self.interrupt(signal.SIGINT)
        self.assertEqual(status, 130)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertIn("run this again", err)
        self.assert_succeeds()

    def test_leftovers_are_cleaned(self):
        for name in ("tree/lib/half.so", "old/x", "downloads/" + TORCH + ".0-5"):
            path = os.path.join(self.dest + ".part", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as f:
                f.write("stale")
        self.assert_succeeds()
        os.mkdir(self.dest + ".part")
        self.assert_succeeds()

    def test_two_at_once(self):
        self.server.pause = 0.005
        children = [self.child(), self.child()]
        for child in children:
            out, err = child.communicate(timeout=15)
            self.assertEqual((child.returncode, err), (0, ""), out)
        self.assert_laid_out()
        self.assertEqual(sum(name == TORCH and asked == "bytes=0-0" for name, asked in self.server.requests), 1)

    # the machine

    def test_full_disk_is_foreseen(self):
        usage = mock.Mock(free=1 << 20)
        with mock.patch.object(shutil, "disk_usage", lambda path: usage):
            self.assert_fails("the disk is full", "free some space")
        self.assertLess(self.server.sent, 400000)

    def test_full_disk_in_the_midst(self):
        calls = []

        def full(action, *arguments):
            calls.append(action)
            if len(calls) > 8:
                raise fetch.LocalWriteError(OSError(errno.ENOSPC, "No space left on device"))
            return action(*arguments)

        with mock.patch.object(fetch, "locally", full):
            self.assert_fails("the disk is full")
        self.assertFalse(os.path.exists(self.dest + ".part"))

    def test_no_pip(self):
        with mock.patch.object(fetch, "pip_command", original_pip_command), \
                mock.patch.object(fetch.sys, "executable", "/bin/false"), mock.patch.dict(os.environ, PATH="/nowhere"), \
                mock.patch.object(fetch, "compiler", lambda: ["cc"]):
            self.assert_fails("no pip", "python3-pip")

    def test_no_compiler(self):
        os.environ["CC"] = "no-such-compiler"
        self.assert_fails("no C compiler (no-such-compiler)", "set CC")

    def test_other_platforms(self):
        import platform

        with mock.patch.object(platform, "machine", lambda: "aarch64"):
            self.assert_fails("aarch64", "set LIBTORCH")

    def test_folder_that_cannot_be_written(self):
        with open(os.path.join(self.home, "checkout"), "w"):
            pass
        self.assert_fails("checkout")

    # LIBTORCH of the user

    def own(self, build_version=None, header=None, libraries=("libc10.so", "libtorch_cpu.so")):
        folder = os.path.join(self.home, "own")
        os.makedirs(os.path.join(folder, "lib"))
        os.makedirs(os.path.join(folder, "include", "torch", "headeronly"))
        for name in libraries:
            open(os.path.join(folder, "lib", name), "w").close()
        if build_version:
            with open(os.path.join(folder, "build-version"), "w") as f:
                f.write(build_version + "\n")
        if header:
            with open(os.path.join(folder, "include", "torch", "headeronly", "version.h"), "wb") as f:
                f.write(version_header(header))
        os.environ["LIBTORCH"] = folder
        return folder

    def test_own_libtorch_is_named_and_nothing_fetched(self):
        folder = self.own("2.11.0+cu130", libraries=("libc10.so", "libtorch_cpu.so", "libtorch_cuda.so"))
        status, out, err = self.run_main()
        self.assertEqual((status, out, err), (0, "libtorch 2.11.0+cu130 (CUDA) from LIBTORCH: %s\n" % folder, ""))
        self.assertFalse(os.path.exists(self.dest))
        self.assertEqual(self.server.requests, [])

    def test_own_libtorch_by_its_header(self):
        self.own(header="2.11.1")
        self.assertIn("libtorch 2.11.1 (CPU only) from LIBTORCH", self.run_main()[1])

    def test_own_libtorch_of_another_version(self):
        self.own("2.5.1+cpu")
        self.assert_fails("which is libtorch 2.5.1+cpu", "set LIBTORCH to a libtorch 2.11.0")

    def test_own_libtorch_that_is_none(self):
        for folder, words in (("/nowhere", "not a folder"), ("relative", "absolute path"), (self.home, "neither")):
            os.environ["LIBTORCH"] = folder
            self.assert_fails("LIBTORCH is " + folder, words)
        self.own("2.11.0", libraries=("libc10.so",))
        self.assert_fails("no lib/libtorch_cpu.so")

    def test_our_own_folder_in_LIBTORCH_is_fetched(self):
        os.environ["LIBTORCH"] = self.dest
        self.assert_succeeds()

    def test_usage(self):
        self.assertEqual(self.run_main("--nonsense")[0], 2)
        self.assertEqual(self.run_main("--help")[0], 0)


original_pip_command = fetch.pip_command

if __name__ == "__main__":
    unittest.main()
