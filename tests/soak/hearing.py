"""Whether nodes could hear each other, of what was cut when."""

# A primary that hears of a higher epoch has this long to stop: the peers' heartbeat, and its stores' own end.
CONTACT = 6.0


def could_hear(moment: float, since: float, cuts: list[tuple[float, float | None]], contact: float = CONTACT) -> bool:
    """Returns whether the nodes had heard each other for long enough at `moment` for what was so since `since`."""
    begun = since
    for start, end in cuts:
        if end is None or end > moment:
            if start <= moment:
                return False
        else:
            begun = max(begun, end)
    return moment - begun > contact
