"""An engine whose workers agree before each step, so that a change of members interrupts no collective."""

from collections.abc import Callable

from trainer.distribute.horovod import HorovodEngine
from trainer.distribute.topology import Topology
from trainer.system.stop_signals import StopRequest


class ElasticEngine(HorovodEngine):
    """The engine of one generation of members, which leave it together, where they agree on a request to stop."""

    def __init__(self, topology: Topology, *, is_asked_to_leave: Callable[[], bool], stop_request: StopRequest) -> None:
        super().__init__(topology)
        self._is_asked_to_leave, self._stop_request = is_asked_to_leave, stop_request

    def any(self, flag: bool) -> bool:
        """Return True if `flag` or a request to stop is set on any worker.

        Raises:
            MembersChange: on all workers together, if neither is set and one of them was asked to leave.
        """
        flag = flag or self._stop_request.is_set
        if not super().any(flag or self._is_asked_to_leave()):
            return False
        if super().any(flag):
            return True
        raise MembersChange

    def wants_stop(self, flag: bool) -> bool:
        return flag or self._stop_request.is_set or self._is_asked_to_leave()

    def agrees_to_stop(self, flag: bool) -> bool:
        """Return True if a stop was asked for; raise MembersChange, as `any`, if it was only a change of members."""
        return self.any(flag)


class MembersChange(Exception):
    """Raised on all members of a generation when they have agreed to leave it."""
