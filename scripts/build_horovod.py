"""Builds Horovod for the installed TensorFlow, keeps the wheel in a cache, installs it and tries it.

Horovod's last release neither builds with a TensorFlow newer than about 2.15 nor has wheels. One line stands in the
way: its CMake file compiles `xla_mpi_ops.cc`, collectives inside XLA, against headers that TensorFlow's wheel does not
ship. This project keeps collectives outside XLA, so the line goes and the rest builds as it is.

Gloo is always built in, MPI where mpicxx and mpirun are found, NCCL where nvcc and nccl.h are found (HOROVOD_NCCL_HOME
names an NCCL elsewhere). The wheel's version says what it was built for, such as 0.28.1+tf2.21.0.b3fa4b2c1d0: another
TensorFlow, Python, platform, MPI or NCCL is another wheel, and an installed one that no longer fits is replaced.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time

VERSION = "0.28.1"
UNBUILDABLE_SOURCE = "xla_mpi_ops.cc"
CMAKE_FILE = "horovod/tensorflow/CMakeLists.txt"
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
LOCK = REPOSITORY / "requirements" / "horovod.lock"
TRIAL = REPOSITORY / "scripts" / "horovod_allreduce.py"
TRIAL_LIMIT_SECS = 180


class BuildError(Exception):
    """Horovod cannot be built, installed or run here; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a wheel is built for; a wheel fits where every field is the same."""

    tensorflow: str
    python: str
    platform: str
    mpi: str | None
    nccl: str | None
    # Names the mended line: a wheel from before a change of the mend must not pass for one from after it.
    without_source: str = UNBUILDABLE_SOURCE

    def version(self) -> str:
        """The version of the wheel: Horovod's own, then TensorFlow's, then ten hex digits of all the fields."""
        fields = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{VERSION}+tf{self.tensorflow}.b{hashlib.sha256(fields.encode()).hexdigest()[:10]}"

    def environment(self) -> dict[str, str]:
        """What Horovod's setup.py and CMake files read to build just this."""
        switches = {
            "HOROVOD_WITH_TENSORFLOW": "1",
            "HOROVOD_WITHOUT_PYTORCH": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
            "HOROVOD_WITH_GLOO": "1",
            "HOROVOD_WITH_MPI" if self.mpi else "HOROVOD_WITHOUT_MPI": "1",
            "HOROVOD_LOCAL_VERSION": self.version().partition("+")[2],
            # Gloo's CMake file asks for a CMake older than what CMake 4 still imitates.
            "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
            # Under `make`, MAKEFLAGS would hand down a job server that setup.py does not know how to use.
            "MAKEFLAGS": f"-j{os.cpu_count()}",
        }
        if self.nccl:
            switches["HOROVOD_GPU_OPERATIONS"] = "NCCL"
        return {**os.environ, **switches}


def find_target() -> Target:
    """Reads off this environment what to build for."""
    try:
        tensorflow = importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:
        raise BuildError(f"{sys.prefix} has no TensorFlow to build Horovod for; run scripts/setup first") from None
    return Target(
        tensorflow=tensorflow,
        python=f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}",
        platform=f"{sysconfig.get_platform()} {'-'.join(platform.libc_ver())}",
        mpi=find_mpi(),
        nccl=find_nccl(),
    )


def find_mpi() -> str | None:
    """The MPI and its version, or None where it is not there to compile with and to run."""
    if not (shutil.which("mpicxx") and shutil.which("mpirun")):
        return None
    answer = _ask("mpirun", "--version")
    number = re.search(r"\d+(\.\d+)+\w*", answer)
    return f"{'Open MPI' if 'Open MPI' in answer else 'MPI'} {number[0] if number else answer}"


def find_nccl() -> str | None:
    """The versions of CUDA and NCCL, or None where one of them cannot be compiled with."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    homes = [os.environ.get("HOROVOD_NCCL_HOME"), os.environ.get("CUDA_HOME"), "/usr", "/usr/local/cuda"]
    for home in filter(None, homes):
        header = pathlib.Path(home, "include", "nccl.h")
        if header.is_file():
            numbers = re.findall(r"#define NCCL_(?:MAJOR|MINOR|PATCH)\s+(\d+)", header.read_text(encoding="utf-8"))
            return f"NCCL {'.'.join(numbers)} at {home}, {_ask(nvcc, '--version').rpartition(' ')[2]}"
    return None


def find_wheel(cache_dir: pathlib.Path, target: Target) -> pathlib.Path | None:
    """The wheel in `cache_dir` that was built for `target`, if there is one."""
    return next(cache_dir.glob(f"horovod-{target.version()}-*.whl"), None)


def build_wheel(cache_dir: pathlib.Path, target: Target) -> pathlib.Path:
    """Builds the wheel for `target` into `cache_dir`; a build that fails leaves its log there and nothing else."""
    require_build_tools()
    cache_dir.mkdir(parents=True, exist_ok=True)
    log = cache_dir / f"horovod-{target.version()}.log"
    log.write_text("", encoding="utf-8")
    _say(f"building {target.version()}, some 4 minutes on 2 cores; the compiler's output is in {log}")
    for name, found in (("MPI", target.mpi), ("NCCL", target.nccl)):
        _say(f"{'with ' + found if found else 'without ' + name}")
    started = time.monotonic()
    # Beside the cache, so that the finished wheel can be renamed into it: nobody ever finds half a wheel there.
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix="build-") as scratch:
        source = fetch_source(pathlib.Path(scratch), log)
        remove_unbuildable_source(source / CMAKE_FILE)
        built = pathlib.Path(scratch, "wheel")
        options = ["--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir", f"--wheel-dir={built}"]
        _pip_logged(["wheel", *options, str(source)], log, target.environment())
        (wheel,) = built.glob("*.whl")
        finished = wheel.replace(cache_dir / wheel.name)
    _say(f"built in {time.monotonic() - started:.0f} s")
    return finished


def require_build_tools() -> None:
    """Raises BuildError, naming what to install, where the compiler or cmake is missing."""
    tools = {"c++": "g++", "cmake": "cmake", "make": "make"}
    missing = [name for name in tools if not shutil.which(name)]
    if missing:
        packages = " ".join(tools[name] for name in missing)
        raise BuildError(
            f"{' and '.join(missing)} not found, and Horovod has to be compiled; "
            f"on Debian or Ubuntu: sudo apt-get install {packages}; to test without Horovod: make test HOROVOD=off"
        )


def fetch_source(directory: pathlib.Path, log: pathlib.Path) -> pathlib.Path:
    """Downloads and unpacks the source whose hash stands in the lock; returns its folder."""
    options = ["--no-deps", "--no-binary=horovod", "--no-build-isolation", "--require-hashes", f"--dest={directory}"]
    _pip_logged(["download", *options, f"--requirement={LOCK}"], log, dict(os.environ))
    subprocess.run(["tar", "-xzf", f"horovod-{VERSION}.tar.gz"], cwd=directory, check=True)
    return directory / f"horovod-{VERSION}"


def remove_unbuildable_source(cmake_file: pathlib.Path) -> None:
    """Takes the one line out that names the unbuildable source; BuildError where there is not exactly one."""
    lines = cmake_file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if UNBUILDABLE_SOURCE not in line]
    if len(lines) - len(kept) != 1:
        raise BuildError(
            f"{cmake_file.name} names {UNBUILDABLE_SOURCE} on {len(lines) - len(kept)} lines where exactly one was "
            f"expected; the source is not that of Horovod {VERSION}"
        )
    cmake_file.write_text("".join(kept), encoding="utf-8")


def install(wheel: pathlib.Path, target: Target) -> None:
    """Installs `wheel` without dependencies (the locks hold them), unless just this build is installed."""
    try:
        if importlib.metadata.version("horovod") == target.version():
            return
    except importlib.metadata.PackageNotFoundError:
        pass  # Nothing to compare with: install.
    subprocess.run([*_PIP, "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)], check=True)
    _say(f"installed {wheel.name}")


def try_allreduce() -> None:
    """Sums over two real processes; BuildError where that fails, hangs or gives a wrong sum."""
    horovodrun = pathlib.Path(sys.executable).with_name("horovodrun")
    command = [str(horovodrun), "--gloo", "-np", "2", sys.executable, str(TRIAL)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    ) as job:
        try:
            output, _ = job.communicate(timeout=TRIAL_LIMIT_SECS)
        except subprocess.TimeoutExpired as e:
            os.killpg(job.pid, signal.SIGKILL)
            said = (e.output or b"").decode(errors="replace")
            raise BuildError(f"{' '.join(command)} did not end within {TRIAL_LIMIT_SECS} s:\n{said}") from None
    num_right = output.count('"size": 2, "dtype": "float32", "sum": [1.0, 3.0, 5.0, 7.0]')
    if job.returncode != 0 or num_right != 2:
        raise BuildError(f"{' '.join(command)} failed with status {job.returncode}:\n{output}")
    _say("an allreduce over two processes gives the right sum")


def _say(message: str) -> None:
    # Flushed: in a log, a build of minutes would otherwise look like a hang.
    print(f"horovod: {message}", flush=True)


_PIP = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check")


def _pip_logged(arguments: list[str], log: pathlib.Path, environment: dict[str, str]) -> None:
    with log.open("a", encoding="utf-8") as output:
        ended = subprocess.run([*_PIP, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment)
    if ended.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace", encoding="utf-8").splitlines()[-30:])
        raise BuildError(f"pip {arguments[0]} failed with status {ended.returncode}; the end of {log}:\n{tail}")


def _ask(*command: str) -> str:
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, encoding="utf-8", errors="replace"
    ).stdout
    return " ".join(output.split())


def default_cache_dir() -> pathlib.Path:
    """`$XDG_CACHE_HOME/trainer/wheels`, in `~/.cache` where the variable is not set."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trainer" / "wheels"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", type=pathlib.Path, default=default_cache_dir(), help="holds the wheels")
    cache_dir = parser.parse_args().cache_dir.absolute()
    try:
        target = find_target()
        install(find_wheel(cache_dir, target) or build_wheel(cache_dir, target), target)
        try_allreduce()
    except BuildError as e:
        print(f"horovod: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
