"""How large the cases are: as the targets want it, or small enough for a look in between."""

from dataclasses import dataclass

from .generator import MIB

GIB = 1024 * MIB


@dataclass(frozen=True)
class Sizes:
    rounds: int
    small_files: int
    small_mean: int
    few: int
    big_bytes: int
    inserted_bytes: int
    appended_bytes: int
    moved_files: int
    moved_mean: int
    logs: int
    log_mean: int
    logged_bytes: int
    stream_seconds: int
    stream_files: int
    changes_per_second: int
    idle_seconds: int
    million: int
    floor_bytes: int
    disk_bytes: int
    # What takes longer than this has hung.
    patience: float


FULL = Sizes(
    rounds=5,
    small_files=200_000, small_mean=5100, few=200,
    big_bytes=4 * GIB, inserted_bytes=MIB, appended_bytes=64 * MIB,
    moved_files=20_000, moved_mean=53_700,
    logs=5000, log_mean=64 * 1024, logged_bytes=200,
    stream_seconds=60, stream_files=5000, changes_per_second=1000,
    idle_seconds=10, million=1_000_000, floor_bytes=GIB, disk_bytes=48 * GIB, patience=900,
)
QUICK = Sizes(
    rounds=2,
    small_files=20_000, small_mean=5100, few=200,
    big_bytes=256 * MIB, inserted_bytes=MIB, appended_bytes=4 * MIB,
    moved_files=2000, moved_mean=53_700,
    logs=500, log_mean=64 * 1024, logged_bytes=200,
    stream_seconds=10, stream_files=5000, changes_per_second=1000,
    idle_seconds=5, million=100_000, floor_bytes=256 * MIB, disk_bytes=8 * GIB, patience=60,
)
