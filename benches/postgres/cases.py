"""The cases, in the order in which they run."""

from benches.case import Case

from .latency import Latency
from .promotion import Promotion, SilentPromotion
from .rejoin import LargeRejoin, Rejoin
from .seeding import Seeding
from .switchover import LoadedSwitchover, PeerSwitchover, Switchover

CASES: tuple[type[Case], ...] = (
    Promotion, SilentPromotion, Switchover, LoadedSwitchover, PeerSwitchover, Rejoin, LargeRejoin, Seeding, Latency,
)
