"""Where the kernel counts the processes that it ended for lack of memory."""

import pathlib

import pytest

from trainer.system.oom_kills import count_oom_kills

CGROUP_2 = "0::/pod/a\n"
CGROUP_1 = "3:cpuset:/\n4:memory:/pod/a\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "file", "text", "expected"),
    [
        (CGROUP_2, "cgroups/pod/a/memory.events", "low 0\noom 4\noom_kill 3\n", 3),
        (CGROUP_2, "cgroups/memory.events", "low 0\noom 4\noom_kill 2\n", 2),
        (CGROUP_1, "cgroups/memory/pod/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        (CGROUP_1, "cgroups/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 7),
        (CGROUP_2, "elsewhere", "", 7),
    ],
)
def test_the_count_is_that_of_the_nearest_place(
    tmp_path: pathlib.Path, cgroup: str, file: str, text: str, expected: int
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
    (tmp_path / "proc" / "vmstat").write_text("pgfault 12\noom_kill 7\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert count_oom_kills(tmp_path / "proc", tmp_path / "cgroups") == expected


def test_without_any_count_nobody_was_killed(tmp_path: pathlib.Path) -> None:
    assert count_oom_kills(tmp_path, tmp_path) == 0
