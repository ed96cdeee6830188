"""`trainer doctor` opens with the one thing to do first."""

from trainer.doctor.finding import absent, first_step, ok, problem, warning


def test_a_problem_comes_before_a_warning_and_what_is_only_absent_is_left_alone() -> None:
    findings = [
        ok("Python", "3.11"),
        absent("GPUs", "none", "buy one"),
        warning("disk", "1 GiB free", "delete something"),
    ]
    assert first_step(findings) == "delete something (disk: 1 GiB free)"
    broken = [*findings, problem("ports", "no loopback", "ip link set lo up"), problem("XLA", "fails", "use --xla off")]
    assert first_step(broken) == "ip link set lo up (ports: no loopback)"
    assert first_step(findings[:2]) == "nothing; this machine can train"
