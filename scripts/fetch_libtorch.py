#!/usr/bin/env python3
"""Lays out libtorch 2.11.0 (its CPU part) in the checkout's ignored folder `.libtorch/`.

    python3 scripts/fetch_libtorch.py [DEST]

`make` calls this before every build, so a complete DEST costs a few file stats and prints nothing.
A LIBTORCH that the user has set is checked, named, and nothing is fetched.

Where it comes from: the wheels that pip's own index offers, so that proxies and mirrors which work for pip
work here, and no host is written in this file. Of torch's 530 MB only the headers and the CPU libraries are
wanted, and they lie next to each other: with HTTP range requests 131 MB are fetched, and the whole wheel only
where a server refuses ranges. `pip install --dry-run --report` would name the wheels too, but pip downloads
the whole wheel for it when an index serves no separate metadata; `pip index versions -vv` lists the addresses
and downloads nothing.

What is trusted: the sha256 of each wheel's RECORD, pinned below; RECORD holds the sha256 of every file.

Interrupted: everything is built in DEST.part and renamed into place at the end. The next run continues the
download where it stopped and makes the rest anew. Needs Python 3.8, nothing but its standard library, pip and
a C compiler. Every foreseeable failure is one line on stderr and exit status 1.
"""

import os
import sys

VERSION = "2.11.0"
SERIES = "2.11."
LAYOUT = "1"  # raise it when the contents of DEST change: older folders are then laid out anew
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BY_HAND = "or set LIBTORCH to an unpacked libtorch %s" % VERSION

# wheel: its file name. record: sha256 of its RECORD. files: path in the wheel -> path in DEST; a path that
# ends in a slash stands for everything below it. torch's libtorch.so is not among them: it would drag in
# libtorch_cuda, so an empty library takes its place.
WHEELS = [
    {
        "wheel": "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "record": "86b11de9e81e378fe38d68644e581b98c138494d67197b94ba12eade2be836e7",
        "files": {
            "torch/include/": "include/",
            "torch/lib/libc10.so": "lib/libc10.so",
            "torch/lib/libgomp.so.1": "lib/libgomp.so.1",
            "torch/lib/libtorch_cpu.so": "lib/libtorch_cpu.so",
            "torch-2.11.0.dist-info/licenses/LICENSE": "LICENSE",
            "torch-2.11.0.dist-info/licenses/NOTICE": "NOTICE",
        },
    },
    {
        "wheel": "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "record": "34c7a65651597fd8a376b049b69bb26db399a9ea443a7a142ccd34f5a10f79c4",
        "files": {
            "nvidia/cu13/lib/libcudart.so.13": "lib/libcudart.so.13",
            "nvidia_cuda_runtime-13.0.96.dist-info/licenses/License.txt": "LICENSE.nvidia",
        },
    },
    {
        "wheel": "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        "record": "f8ae8ddce85f8e319abac90e956bf45a572e31f4ff01af2d634f37aa3d78e3eb",
        "files": {"nvidia/cu13/lib/libcupti.so.13": "lib/libcupti.so.13"},
    },
]

RETRIES = 4  # after a broken connection, waiting 1, 2, 4, 8 times RETRY_DELAY seconds
RETRY_DELAY = 1.0
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 18
GAP = 1 << 20  # unwanted bytes between two wanted files that are cheaper to fetch than to ask around


class Failure(Exception):
    """Told to the user as one line; says what to do."""


class RangesRefused(Exception):
    """The server answers range requests with the whole file, or with an error."""


class AccessRefused(Exception):
    """The address that pip found does not open for us (credentials, certificates, a proxy that only pip is told of):
    pip may still manage."""


# ---------------------------------------------------------------- what is there already


def is_complete(dest):
    """Whether dest is a finished layout of this version: a manifest, and every library at its size."""
    try:
        with open(os.path.join(dest, "manifest")) as f:
            lines = f.read().splitlines()
        if lines[:1] != ["libtorch %s layout %s" % (VERSION, LAYOUT)]:
            return False
        for line in lines[1:]:
            size, name = line.split(" ", 1)
            if os.stat(os.path.join(dest, name)).st_size != int(size):
                return False
        return len(lines) > 1
    except (OSError, ValueError):
        return False


def libtorch_version(folder):
    """The version of an unpacked libtorch, from build-version or else from its headers; None if neither is there."""
    try:
        with open(os.path.join(folder, "build-version")) as f:
            return f.read().strip() or None
    except (OSError, ValueError):
        pass
    import re

    for header in ("torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h", "torch/version.h"):
        try:
            with open(os.path.join(folder, "include", header), errors="replace") as f:
                text = f.read()
        except OSError:
            continue
        parts = [re.search(r"#define\s+TORCH_VERSION_%s\s+(\d+)" % p, text) for p in ("MAJOR", "MINOR", "PATCH")]
        if all(parts):
            return ".".join(p.group(1) for p in parts)
    return None


def use_own(folder):
    """Checks the libtorch that the user's LIBTORCH names, and says which it is."""
    instead = "set LIBTORCH to a libtorch %s, or unset it to have one fetched" % VERSION
    if not os.path.isabs(folder):
        raise Failure("LIBTORCH is %s: it must be an absolute path, since the compiler runs in other folders" % folder)
    if not os.path.isdir(folder):
        raise Failure("LIBTORCH is %s, which is not a folder: %s" % (folder, instead))
    version = libtorch_version(folder)
    if version is None:
        raise Failure("LIBTORCH is %s, which has neither build-version nor include/torch/headeronly/version.h: %s"
                      % (folder, instead))
    if not version.startswith(SERIES):
        raise Failure("LIBTORCH is %s, which is libtorch %s: %s" % (folder, version, instead))
    for name in ("libc10.so", "libtorch_cpu.so"):
        if not os.path.exists(os.path.join(folder, "lib", name)):
            raise Failure("LIBTORCH is %s, which has no lib/%s: %s" % (folder, name, instead))
    cuda = os.path.exists(os.path.join(folder, "lib", "libtorch_cuda.so"))
    print("libtorch %s (%s) from LIBTORCH: %s" % (version, "CUDA" if cuda else "CPU only", folder))


# ---------------------------------------------------------------- asking pip


def pip_command():
    import shutil
    import subprocess

    for command in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        if command[0] != sys.executable and not shutil.which(command[0]):
            continue
        probe = subprocess.run(command + ["--version"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        if probe.returncode == 0:
            return command
    raise Failure("no pip for %s: install it (Debian, Ubuntu: apt install python3-pip; else python3 -m ensurepip), %s"
                  % (sys.executable, BY_HAND))


def pip_environment():
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_REQUIRE_VIRTUALENV="0")
    for name in ("PIP_QUIET", "PIP_VERBOSE", "PIP_LOG"):
        env.pop(name, None)
    return env


def pip_selection():
    """Asks for the pinned wheels, whatever the Python that runs pip."""
    options = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=none"]
    return options + ["--platform=manylinux_2_%d_x86_64" % glibc for glibc in range(28, 16, -1)] + [
        "--platform=manylinux2014_x86_64"]


def requirement(wheel):
    name, version = wheel.split("-")[:2]
    return name.replace("_", "-"), version


def last_error(text):
    errors = [line.strip() for line in text.splitlines() if line.strip().startswith("ERROR:")]
    return errors[-1][len("ERROR:"):].strip() if errors else "no reason given"


def address_from_pip(pip, wheel):
    """The wheel's address in pip's index; None if this pip cannot tell (before 21.2), or hides credentials in it."""
    import re
    import subprocess
    from urllib.parse import unquote, urlsplit

    name, version = requirement(wheel)
    command = pip + ["index", "versions", "-vv", "--retries=2"] + pip_selection() + [name]
    done = subprocess.run(command, env=pip_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True, errors="replace")
    for address in re.findall(r"(?:https?|file)://[^\s\"'<>]+", done.stdout):
        if os.path.basename(unquote(urlsplit(address).path)) == wheel:
            return None if "****" in address else address.split("#")[0]
    if "unknown command" in done.stdout or "no such option" in done.stdout:
        return None
    if re.search(r"connection (broken|error)|SSLError|ProxyError|timed out|Could not fetch URL(?!.* 404 )", done.stdout):
        raise Failure("pip cannot reach its package index: check the network, proxy or pip's index settings and run "
                      "this again, " + BY_HAND)
    raise Failure("pip's package index has no %s: point pip at an index that has %s %s, %s"
                  % (wheel, name, version, BY_HAND))


def download_with_pip(pip, wheel, folder):
    """Lets pip fetch the whole wheel, with its credentials, certificates and progress bar. Returns the file."""
    import subprocess

    command = pip + ["download", "--no-deps", "--no-cache-dir", "--retries=2", "--dest", folder] + pip_selection()
    done = subprocess.run(command + ["==".join(requirement(wheel))], env=pip_environment(), stdin=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, universal_newlines=True, errors="replace")
    path = os.path.join(folder, wheel)
    if done.returncode or not os.path.exists(path):
        if "No space left" in done.stderr:
            raise Failure("the disk is full at %s: free some space and run this again" % folder)
        raise Failure("pip could not download %s (%s): check the network and pip's settings and run this again, %s"
                      % (wheel, last_error(done.stderr), BY_HAND))
    return path


# ---------------------------------------------------------------- the wheel as a file, near or far


class Progress:
    """One line that redraws on a terminal, a line every quarter elsewhere."""

    def __init__(self, what):
        self.what, self.total, self.done, self.shown = what, 0, 0, None
        self.tty = sys.stdout.isatty()

    def add(self, count):
        self.done += count
        percent = 100 * self.done // self.total if self.total else 100
        step = percent if self.tty else percent // 25
        if step == self.shown:
            return
        self.shown = step
        line = "%s: %.1f of %.1f MB (%d%%)" % (self.what, self.done / 1e6, self.total / 1e6, percent)
        sys.stdout.write("\r\033[K" + line if self.tty else line + "\n")
        sys.stdout.flush()

    def end(self):
        if self.tty and self.shown is not None:
            sys.stdout.write("\n")
        self.shown = None


class Remote:
    """A file behind HTTP, read by ranges. What has been fetched lies in local files named after their range, which
    is what makes an interrupted download continue. Seekable, for zipfile."""

    def __init__(self, address, folder, wheel):
        self.address, self.folder, self.wheel = address, folder, wheel
        self.position, self.size, self.segments = 0, None, []  # segments: (start, end, open file)
        self.cached_opener = None

    def connect(self):
        """Learns the size and fetches the tail, where a zip file's directory is. RangesRefused comes from here."""
        with patiently(lambda: self.open(0, 1)) as answer:
            self.size = int(answer.headers["Content-Range"].rpartition("/")[2])
        self.fetch(max(0, self.size - (1 << 16)), self.size)

    def open(self, start, end):
        """The answer to a request for bytes start..end; end None asks for the whole file without a range."""
        import http.client
        import ssl
        import urllib.error
        import urllib.request

        request = urllib.request.Request(self.address, headers={"Accept-Encoding": "identity"})
        if end is not None:
            request.add_header("Range", "bytes=%d-%d" % (start, end - 1))
        try:
            answer = self.opener().open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as e:
            if e.code in (401, 403, 407):
                raise AccessRefused("HTTP status %d" % e.code)
            if end is not None and e.code in (400, 405, 416, 501):
                raise RangesRefused()
            if e.code in (408, 429) or e.code >= 500:
                raise OSError("HTTP status %d" % e.code)
            raise Failure("the package index answers %d for %s: run this again later, %s" % (e.code, self.wheel, BY_HAND))
        except urllib.error.URLError as e:
            if isinstance(e.reason, ssl.SSLError):
                raise AccessRefused(str(e.reason))
            raise OSError(str(e.reason))
        except http.client.HTTPException as e:
            raise OSError("no HTTP answer: %r" % e)
        if end is not None:
            served = answer.headers.get("Content-Range", "")
            if answer.status != 206 or not served.startswith("bytes %d-%d/" % (start, end - 1)) or served.endswith("*"):
                answer.close()
                raise RangesRefused()
        return answer

    def opener(self):
        """The environment's proxies, the system's certificates and, as pip does it, those of PIP_CERT."""
        import ssl
        import urllib.request

        if self.cached_opener is None:
            handlers = []
            if self.address.startswith("https:"):
                context = ssl.create_default_context()
                try:
                    context.load_verify_locations(os.environ.get("PIP_CERT") or None)
                except (OSError, TypeError):  # none, or none that can be read (SSLError is an OSError)
                    pass
                handlers.append(urllib.request.HTTPSHandler(context=context))
            self.cached_opener = urllib.request.build_opener(*handlers)
        return self.cached_opener

    def path(self, start, end):
        return os.path.join(self.folder, "%s.%d-%d" % (self.wheel, start, end))

    def fetch(self, start, end, progress=None):
        """Makes bytes start..end readable, continuing a file that an earlier run left."""
        path = self.path(start, end)
        have = os.path.getsize(path) if os.path.exists(path) else 0
        if progress:
            progress.add(have)
        if have < end - start:
            with open(path, "ab") as out:
                transfer(lambda done: self.open(start + done, end), out, end - start, self.wheel, progress)
        self.segments.append((start, end, open(path, "rb")))

    def fetch_whole(self, path, progress=None):
        """Fetches the whole file without ranges. A broken connection begins again at its first byte."""
        with open(path, "wb") as out:
            transfer(lambda done: self.open(0, None), out, None, self.wheel, progress)

    # zipfile's side

    def seekable(self):
        return True

    def tell(self):
        return self.position

    def seek(self, offset, whence=0):
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def read(self, count=-1):
        start = self.position
        end = self.size if count < 0 else min(self.size, start + count)
        if end <= start:
            return b""
        for first, last, file in self.segments:
            if first <= start and end <= last:
                file.seek(start - first)
                data = file.read(end - start)
                self.position += len(data)
                return data
        self.fetch(start, end)  # the central directory; all else is fetched beforehand
        return self.read(count)

    def close(self):
        for _, _, file in self.segments:
            file.close()
        self.segments = []

    def discard(self):
        """Forgets what was fetched: a file turned out not to be what RECORD says."""
        self.close()
        for name in os.listdir(self.folder):
            if name.startswith(self.wheel):
                os.remove(os.path.join(self.folder, name))


def patiently(action):
    """action(), tried again where no connection comes about."""
    import time

    for attempt in range(RETRIES + 1):
        try:
            return action()
        except OSError as e:
            if attempt == RETRIES:
                raise AccessRefused(str(e))
            time.sleep(RETRY_DELAY * 2 ** attempt)


def transfer(connect, out, length, wheel, progress):
    """Appends an answer's body to the file out until it holds length bytes (None: what the answer announces).
    connect(done) opens an answer that begins at byte done; with length None it begins at byte 0."""
    import http.client
    import time

    attempt = 0
    while True:
        done = out.tell()
        if length is None and done:
            if progress:
                progress.add(-done)
            out.seek(0)
            out.truncate()
            done = 0
        try:
            with connect(done) as answer:
                expected = length
                if expected is None and answer.headers.get("Content-Length"):
                    expected = int(answer.headers["Content-Length"])
                    if progress:
                        progress.total = max(progress.total, expected)
                while True:
                    data = answer.read(BLOCK)
                    if not data:
                        break
                    locally(out.write, data)
                    attempt = 0 if length is not None else attempt
                    if progress:
                        progress.add(len(data))
            locally(out.flush)
            if expected is None or out.tell() == expected:
                return
            raise OSError("the connection ended early")
        except LocalWriteError as e:
            raise e.error
        except (OSError, http.client.HTTPException) as e:
            attempt += 1
            if attempt > RETRIES:
                again = "run this again" if length is None else "run this again, it continues where it stopped"
                raise Failure("downloading %s failed (%s): check the network and %s; %s"
                              % (wheel, e or type(e).__name__, again, BY_HAND))
            time.sleep(RETRY_DELAY * 2 ** (attempt - 1))


class LocalWriteError(Exception):
    """Keeps a full disk apart from a broken connection, both of which are OSError."""

    def __init__(self, error):
        self.error = error


def locally(action, *arguments):
    try:
        action(*arguments)
    except OSError as e:
        raise LocalWriteError(e)


# ---------------------------------------------------------------- laying out


class Wheel:
    """One wheel: what of it is wanted, where that lies, and how it is checked."""

    def __init__(self, spec, pip, downloads):
        self.spec, self.name, self.pip, self.downloads = spec, spec["wheel"], pip, downloads
        self.remote = self.zip = None

    def open(self, progress):
        """Opens the wheel by ranges, else whole; then reads and checks RECORD."""
        address = address_from_pip(self.pip, self.name)
        path = None
        if address is not None and address.startswith("file:"):
            from urllib.parse import unquote, urlsplit

            path = unquote(urlsplit(address).path)
        elif address is not None:
            try:
                try:
                    self.remote = Remote(address, self.downloads, self.name)
                    self.remote.connect()
                    self.open_zip(self.remote)
                    self.read_record()
                    return
                except RangesRefused:
                    path = self.whole(progress)
            except AccessRefused:
                pass
        if path is None:
            path = download_with_pip(self.pip, self.name, self.downloads)
        self.close()
        self.remote = None
        self.open_zip(path)
        self.read_record()

    def whole(self, progress):
        print("%s: the server refuses range requests, so the whole wheel is fetched" % self.name)
        path = os.path.join(self.downloads, self.name)
        own = Progress(progress.what)
        try:
            self.remote.fetch_whole(path, own)
        finally:
            own.end()
        return path

    def open_zip(self, file):
        import zipfile

        try:
            self.zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile:
            self.corrupt("it is not a zip file")
        self.entries = sorted(self.zip.infolist(), key=lambda e: e.header_offset)

    def corrupt(self, what):
        self.discard()
        raise Failure("%s is not what is pinned (%s): run this again, and if it stays so, the package index serves "
                      "another file; %s" % (self.name, what, BY_HAND))

    def discard(self):
        if self.remote is not None:
            self.remote.discard()
        path = os.path.join(self.downloads, self.name)
        if os.path.exists(path):
            os.remove(path)

    def read_record(self):
        import csv
        import hashlib
        import io

        name = "-".join(self.name.split("-")[:2]) + ".dist-info/RECORD"
        try:
            entry = self.zip.getinfo(name)
        except KeyError:
            self.corrupt("it has no RECORD")
        self.fetch([entry])
        try:
            data = self.zip.read(entry)
        except Exception as e:  # zlib.error, BadZipFile: all mean other bytes than expected
            self.corrupt("RECORD: %s" % e)
        if hashlib.sha256(data).hexdigest() != self.spec["record"]:
            self.corrupt("the sha256 of RECORD differs")
        self.hashes = {}
        for row in csv.reader(io.StringIO(data.decode())):
            if len(row) >= 2 and row[1].startswith("sha256="):
                self.hashes[row[0]] = row[1][len("sha256="):]
        self.wanted = []
        for entry in self.entries:
            target = self.target(entry.filename)
            if target is not None and not entry.filename.endswith("/"):
                if entry.filename not in self.hashes:
                    self.corrupt("RECORD does not list %s" % entry.filename)
                self.wanted.append((entry, target))
        found = {entry.filename for entry, _ in self.wanted}
        for source in self.spec["files"]:
            if not source.endswith("/") and source not in found:
                self.corrupt("it has no %s" % source)

    def target(self, name):
        for source, target in self.spec["files"].items():
            if name == source:
                return target
            if source.endswith("/") and name.startswith(source):
                return target + name[len(source):]
        return None

    def ranges(self, entries):
        """The byte ranges that hold these entries, those that lie close together merged."""
        following = {}
        for entry, after in zip(self.entries, self.entries[1:]):
            following[entry.header_offset] = after.header_offset
        merged = []
        for entry in sorted(entries, key=lambda e: e.header_offset):
            start = entry.header_offset
            end = following.get(start, self.zip.start_dir)
            if merged and start - merged[-1][1] <= GAP:
                merged[-1][1] = end
            else:
                merged.append([start, end])
        return merged

    def missing(self):
        """Wanted byte ranges that are not on this machine yet."""
        return self.ranges([entry for entry, _ in self.wanted]) if self.remote is not None else []

    def fetch(self, entries, progress=None):
        if self.remote is not None:
            for start, end in self.ranges(entries):
                self.remote.fetch(start, end, progress)

    def extract(self, folder):
        """Writes the wanted files below folder, each checked against RECORD."""
        import base64
        import hashlib

        for entry, target in self.wanted:
            path = os.path.join(folder, target)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            digest = hashlib.sha256()
            try:
                source = self.zip.open(entry)
            except Exception as e:
                self.corrupt("%s: %s" % (entry.filename, e))
            with source, open(path, "wb") as out:
                while True:
                    try:
                        data = source.read(BLOCK)
                    except Exception as e:
                        self.corrupt("%s: %s" % (entry.filename, e))
                    if not data:
                        break
                    digest.update(data)
                    out.write(data)
            if base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=") != self.hashes[entry.filename]:
                self.corrupt("the sha256 of %s differs" % entry.filename)
            os.chmod(path, 0o755 if target.startswith("lib/") else 0o644)

    def close(self):
        if self.zip is not None:
            self.zip.close()
        if self.remote is not None:
            self.remote.close()


def compiler():
    import shlex
    import shutil

    command = shlex.split(os.environ.get("CC") or "cc")
    if not command or not shutil.which(command[0]):
        raise Failure("no C compiler (%s): install one (Debian, Ubuntu: apt install g++), or set CC"
                      % (" ".join(command) or "cc"))
    return command


def make_empty_library(command, path):
    import subprocess

    done = subprocess.run(command + ["-shared", "-nostdlib", "-Wl,-soname,libtorch.so", "-o", path, "-x", "c", os.devnull],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, errors="replace")
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no message"]
        raise Failure("%s cannot make a shared library (%s): install a working C compiler, or set CC"
                      % (command[0], lines[-1]))


def check_space(folder, wheels):
    import shutil

    need = 64 << 20
    for wheel in wheels:
        need += sum(entry.file_size for entry, _ in wheel.wanted)
        for start, end in wheel.missing():
            path = wheel.remote.path(start, end)
            need += end - start - (os.path.getsize(path) if os.path.exists(path) else 0)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise Failure("the disk is full: libtorch needs %d MB at %s and %d MB are free; free some space and run this "
                      "again" % (need >> 20, folder, free >> 20))


def lock(folder):
    """Two builds at once in one checkout: the second waits here, then finds everything done. The lock is on the
    folder itself and ends with the process, so nothing is left behind."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for another %s in this checkout" % os.path.basename(__file__))
        sys.stdout.flush()
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks
    return handle


def remove(path):
    import shutil

    if os.path.islink(path) or os.path.isfile(path):
        os.remove(path)
    elif os.path.exists(path):
        shutil.rmtree(path)


def lay_out(dest):
    import platform
    import shutil

    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Failure("no libtorch is fetched for %s %s (only for linux x86_64): set LIBTORCH to an unpacked libtorch %s"
                      % (sys.platform, platform.machine(), VERSION))
    part = dest + ".part"
    downloads, tree, old = (os.path.join(part, name) for name in ("downloads", "tree", "old"))
    command, pip = compiler(), pip_command()
    os.makedirs(downloads, exist_ok=True)
    remove(tree)
    remove(old)
    os.makedirs(os.path.join(tree, "lib"))
    make_empty_library(command, os.path.join(tree, "lib", "libtorch.so"))

    print("libtorch %s: asking pip where its wheels are" % VERSION)
    sys.stdout.flush()
    progress = Progress("libtorch %s" % VERSION)
    wheels = [Wheel(spec, pip, downloads) for spec in WHEELS]
    try:
        for wheel in wheels:
            wheel.open(progress)
        check_space(part, wheels)
        progress.total = sum(end - start for wheel in wheels for start, end in wheel.missing())
        for wheel in wheels:
            try:
                wheel.fetch([entry for entry, _ in wheel.wanted], progress)
            except (RangesRefused, AccessRefused) as e:
                raise Failure("the package index stopped serving %s (%s): run this again later, %s"
                              % (wheel.name, e or "no more ranges", BY_HAND))
        progress.end()
        print("libtorch %s: unpacking and checking" % VERSION)
        sys.stdout.flush()
        for wheel in wheels:
            wheel.extract(tree)
    finally:
        progress.end()
        for wheel in wheels:
            wheel.close()

    libraries = sorted(os.listdir(os.path.join(tree, "lib")))
    lines = ["libtorch %s layout %s" % (VERSION, LAYOUT)]
    lines += ["%d lib/%s" % (os.path.getsize(os.path.join(tree, "lib", name)), name) for name in libraries]
    with open(os.path.join(tree, "build-version"), "w") as f:
        f.write(VERSION + "\n")
    with open(os.path.join(tree, "manifest"), "w") as f:
        f.write("\n".join(lines) + "\n")
    if os.path.lexists(dest):
        os.rename(dest, old)
    os.rename(tree, dest)
    shutil.rmtree(part)
    print("libtorch %s: ready in %s" % (VERSION, dest))


def main(arguments):
    import errno

    if sys.version_info < (3, 8):
        sys.stderr.write("fetch_libtorch: %s is Python %d.%d: use Python 3.8 or later\n"
                         % ((sys.executable,) + sys.version_info[:2]))
        return 1
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(__doc__ if arguments[0] in ("-h", "--help") else "usage: fetch_libtorch.py [DEST]")
        return 0 if arguments[0] in ("-h", "--help") else 2
    dest = os.path.abspath(arguments[0] if arguments else os.path.join(ROOT, ".libtorch"))
    own = os.environ.get("LIBTORCH", "").strip()
    handle = None
    try:
        if own and os.path.abspath(own) != dest:  # the Makefile may have exported DEST itself
            use_own(own)
            return 0
        if is_complete(dest):
            if os.path.exists(dest + ".part"):
                handle = lock(os.path.dirname(dest))  # left by an interruption in the last moment
                remove(dest + ".part")
            return 0
        os.makedirs(os.path.dirname(dest), exist_ok=True)
        handle = lock(os.path.dirname(dest))
        if not is_complete(dest):
            lay_out(dest)
        return 0
    except Failure as e:
        message, status = str(e), 1
    except KeyboardInterrupt:
        message, status = "interrupted: run this again, the download continues where it stopped", 130
    except OSError as e:
        status = 1
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            try:
                remove(dest + ".part")
            except OSError:
                pass
            message = "the disk is full at %s: free about 700 MB and run this again" % os.path.dirname(dest)
        else:
            message = "%s: see to it and run this again, %s" % (e, BY_HAND)
    finally:
        if handle is not None:
            os.close(handle)
    sys.stdout.flush()
    sys.stderr.write("fetch_libtorch: %s\n" % " ".join(message.split()))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
