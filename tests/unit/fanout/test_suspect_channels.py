"""`backplane.fanout.suspect_channels`: which channel ends the link each time it is subscribed."""

from __future__ import annotations

from backplane.fanout.suspect_channels import SuspectChannels

NAMES = [f"room-{number}" for number in range(500)]


def test_one_loss_is_chance() -> None:
    """Channels that were requested at one loss are requested as before."""
    suspects = SuspectChannels()
    assert suspects.link_ended(NAMES, had_answered=True) is None
    assert not any(suspects.is_isolated(name) for name in NAMES)


def test_second_loss_isolates() -> None:
    """Channels that were requested at two losses are isolated, in pieces; the others are not."""
    suspects = SuspectChannels()
    suspects.link_ended(NAMES[:100], had_answered=True)
    suspects.link_ended(NAMES[50:250], had_answered=True)
    assert [name for name in NAMES if suspects.is_isolated(name)] == NAMES[50:100]
    assert suspects.next_piece(NAMES[50:100]) == NAMES[50:62]


def test_channel_that_ends_links_is_found_in_few_losses() -> None:
    """One of five hundred channels that ends every link is alone after a few losses, and quarantined."""
    suspects = SuspectChannels()
    quarantined, losses = None, 0
    pending = list(NAMES)
    while quarantined is None:
        batch = suspects.next_piece(pending) if suspects.is_isolated(NAMES[77]) else pending
        if NAMES[77] in batch:
            losses += 1
            quarantined = suspects.link_ended(batch, had_answered=True)
            pending = batch
        else:
            suspects.clear(batch)
            pending = [name for name in pending if name not in batch]
    assert (quarantined, losses) == (NAMES[77], 4)
    assert suspects.is_quarantined(quarantined)
    assert not any(suspects.is_quarantined(name) for name in NAMES if name != quarantined)


def test_answer_clears() -> None:
    """An answer of the broker ends the suspicion, and a quarantine too."""
    suspects = SuspectChannels()
    for _ in range(3):
        suspects.link_ended(["evil"], had_answered=True)
    assert suspects.is_quarantined("evil")
    suspects.clear(["evil"])
    assert not suspects.is_quarantined("evil")
    assert not suspects.is_isolated("evil")


def test_quarantine_doubles() -> None:
    """A quarantine lasts a minute, then two, up to an hour; after it the channel is tried alone."""
    now = 0.0
    suspects = SuspectChannels(clock=lambda: now)
    for _ in range(2):
        suspects.link_ended(["evil"], had_answered=True)
    for seconds in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        assert suspects.link_ended(["evil"], had_answered=True) == "evil"
        now += seconds - 1
        assert suspects.is_quarantined("evil")
        now += 1
        assert not suspects.is_quarantined("evil")
        assert suspects.is_isolated("evil")
        assert suspects.next_piece(["evil", "other"]) == ["evil"]


def test_number_of_channels_is_bounded() -> None:
    """A client that names ever new channels that end links fills no memory: the oldest quarantines are lifted."""
    suspects = SuspectChannels(max_quarantined=10, max_suspects=100)
    for number in range(30):
        for _ in range(3):
            suspects.link_ended([f"evil-{number}"], had_answered=True)
    assert [number for number in range(30) if suspects.is_quarantined(f"evil-{number}")] == list(range(20, 30))
    suspects.link_ended(NAMES[:60], had_answered=True)
    suspects.link_ended(NAMES[:60], had_answered=True)
    assert suspects.is_isolated(NAMES[0])
    suspects.link_ended(NAMES[60:], had_answered=True)
    suspects.link_ended(NAMES[60:], had_answered=True)
    assert not suspects.is_isolated(NAMES[0])


def test_link_that_answered_nothing_is_not_counted() -> None:
    """A link that ends before it has answered anything is not counted, and the next one must be verified first."""
    suspects = SuspectChannels()
    for _ in range(10):
        assert suspects.link_ended(["a"], had_answered=False) is None
        assert suspects.needs_verified_link
    assert not suspects.is_isolated("a")
    suspects.link_ended([], had_answered=False)
    assert not suspects.needs_verified_link
