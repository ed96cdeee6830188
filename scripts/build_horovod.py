"""Build Horovod for the installed TensorFlow, cache the wheel, install it and test it.

Horovod's last release neither builds with TensorFlow newer than about 2.15 nor has wheels, because its CMake file
compiles `xla_mpi_ops.cc`, collectives inside XLA, against headers that TensorFlow's wheel lacks. This project keeps
collectives outside XLA, so that line is removed and the rest builds unchanged.

Gloo is always included, MPI if mpicxx and mpirun are found, NCCL if nvcc and nccl.h are found (HOROVOD_NCCL_HOME names
an NCCL elsewhere). The wheel's version encodes what it was built for, such as 0.28.1+tf2.21.0.b3fa4b2c1d0: another
TensorFlow, Python, platform, MPI or NCCL gives another wheel, and an installed one that does not match is replaced.
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
    """Horovod cannot be built, installed or run here; the message has the reason and the fix."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The platform of a wheel; a wheel fits if all fields are equal."""

    tensorflow: str
    python: str
    platform: str
    mpi: str | None
    nccl: str | None
    # The removed source, so that wheels built before a change of the patch do not match.
    without_source: str = UNBUILDABLE_SOURCE

    def version(self) -> str:
        """Return the wheel's version: Horovod's, then TensorFlow's, then ten hex digits of a hash of all fields."""
        fields = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{VERSION}+tf{self.tensorflow}.b{hashlib.sha256(fields.encode()).hexdigest()[:10]}"

    def environment(self) -> dict[str, str]:
        """Return the environment for Horovod's setup.py and CMake files."""
        switches = {
            "HOROVOD_WITH_TENSORFLOW": "1",
            "HOROVOD_WITHOUT_PYTORCH": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
            "HOROVOD_WITH_GLOO": "1",
            "HOROVOD_WITH_MPI" if self.mpi else "HOROVOD_WITHOUT_MPI": "1",
            "HOROVOD_LOCAL_VERSION": self.version().partition("+")[2],
            # Gloo's CMake file requires a version older than CMake 4 supports.
            "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
            # Under `make`, MAKEFLAGS would pass a job server that setup.py cannot use.
            "MAKEFLAGS": f"-j{os.cpu_count()}",
        }
        if self.nccl:
            switches["HOROVOD_GPU_OPERATIONS"] = "NCCL"
        return {**os.environ, **switches}


def find_target() -> Target:
    """Return the target for this environment."""
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
    """Return the MPI and its version, or None if it cannot be compiled with and run."""
    if not (shutil.which("mpicxx") and shutil.which("mpirun")):
        return None
    answer = _ask("mpirun", "--version")
    number = re.search(r"\d+(\.\d+)+\w*", answer)
    return f"{'Open MPI' if 'Open MPI' in answer else 'MPI'} {number[0] if number else answer}"


def find_nccl() -> str | None:
    """Return the versions of CUDA and NCCL, or None if one cannot be compiled with."""
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
    """Return the wheel for `target` in `cache_dir`, if there is one."""
    return next(cache_dir.glob(f"horovod-{target.version()}-*.whl"), None)


def build_wheel(cache_dir: pathlib.Path, target: Target) -> pathlib.Path:
    """Build the wheel for `target` in `cache_dir`; a failed build leaves only its log there."""
    require_build_tools()
    cache_dir.mkdir(parents=True, exist_ok=True)
    log = cache_dir / f"horovod-{target.version()}.log"
    log.write_text("", encoding="utf-8")
    _say(f"building {target.version()}, some 4 minutes on 2 cores; the compiler's output is in {log}")
    for name, found in (("MPI", target.mpi), ("NCCL", target.nccl)):
        _say(f"{'with ' + found if found else 'without ' + name}")
    started = time.monotonic()
    # On the same file system, so that the finished wheel is renamed: nobody finds half a wheel there.
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
    """Raise BuildError with the packages to install if the compiler or cmake is missing."""
    tools = {"c++": "g++", "cmake": "cmake", "make": "make"}
    missing = [name for name in tools if not shutil.which(name)]
    if missing:
        packages = " ".join(tools[name] for name in missing)
        raise BuildError(
            f"{' and '.join(missing)} not found, and Horovod has to be compiled; "
            f"on Debian or Ubuntu: sudo apt-get install {packages}; to test without Horovod: make test HOROVOD=off"
        )


def fetch_source(directory: pathlib.Path, log: pathlib.Path) -> pathlib.Path:
    """Download and unpack the source with the hash in the lock file; return its folder."""
    options = ["--no-deps", "--no-binary=horovod", "--no-build-isolation", "--require-hashes", f"--dest={directory}"]
    _pip_logged(["download", *options, f"--requirement={LOCK}"], log, dict(os.environ))
    subprocess.run(["tar", "-xzf", f"horovod-{VERSION}.tar.gz"], cwd=directory, check=True)
    return directory / f"horovod-{VERSION}"


def remove_unbuildable_source(cmake_file: pathlib.Path) -> None:
    """Remove the line with the unbuildable source. Raises BuildError if there is not exactly one."""
    lines = cmake_file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if UNBUILDABLE_SOURCE not in line]
    if len(lines) - len(kept) != 1:
        raise BuildError(
            f"{cmake_file.name} names {UNBUILDABLE_SOURCE} on {len(lines) - len(kept)} lines where exactly one was "
            f"expected; the source is not that of Horovod {VERSION}"
        )
    cmake_file.write_text("".join(kept), encoding="utf-8")


def install(wheel: pathlib.Path, target: Target) -> None:
    """Install `wheel` without dependencies (the locks have them), unless it is installed."""
    try:
        if importlib.metadata.version("horovod") == target.version():
            return
    except importlib.metadata.PackageNotFoundError:
        pass  # Nothing to compare with: install.
    subprocess.run([*_PIP, "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)], check=True)
    _say(f"installed {wheel.name}")


def try_allreduce() -> None:
    """Sum over two processes. Raises BuildError if that fails, hangs or gives a wrong sum."""
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
    # Flushed, since a build of minutes would look like a hang in a log.
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
    """Return `$XDG_CACHE_HOME/trainer/wheels`, by default below `~/.cache`."""
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
