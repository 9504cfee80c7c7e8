"""Claims: the suite measures reactions against the noise floor, and knows a good metric from a blind one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vdmini_core.errors import DataError
from vdmini_core.metrics.sanity import damaged, damaged_sets, damages, sanity_table

FRAMES = 4


@pytest.fixture(scope="module")
def films():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand((24, 1, 5, 5, 3), generator=generator)
    drift = torch.linspace(0, 0.3, 10).view(1, -1, 1, 1, 1) * torch.rand(
        (24, 1, 1, 1, 1), generator=generator
    )
    return (low * 0.6 + drift).repeat_interleave(4, 2).repeat_interleave(4, 3)


def brightness_of_frames(clips):
    """A metric of motion: how brightness goes on; order matters."""
    return clips.mean(dim=(2, 3, 4)).diff(dim=1).numpy()


def mean_picture(clips):
    """A metric of content: the order of frames cannot matter."""
    return clips.mean(dim=1)[:, ::4, ::4].flatten(1)[:, :6].numpy()


def test_every_damage_of_the_paper_four_times(films):
    found = damages()
    assert len(found) == 32 == len(set(found))
    assert sum(d.kind == "content" for d in found) == 16
    for damage in found:
        clips = damaged(films[:2], FRAMES, damage, 0)
        assert clips.shape == (2, FRAMES, 20, 20, 3) and clips.min() >= 0 and clips.max() <= 1


def test_reactions_are_in_units_of_the_floor(films):
    clean, reference = films[:12, :FRAMES], films[12:, :FRAMES]
    table = sanity_table(brightness_of_frames, list(damaged_sets(films[:12], FRAMES)), clean, reference)
    scale, rows = table["scale"], {row["damage"]: row for row in table["rows"]}
    speed = rows["speed"]
    expected = [(d - scale["floor"]) / scale["floor_sd"] for d in speed["distances"]]
    np.testing.assert_allclose(speed["reactions"], expected)
    assert speed["spearman"] == pytest.approx(1.0) and speed["kind"] == "motion"
    assert table["median_reaction"]["motion"] == pytest.approx(
        np.median([r for row in table["rows"] if row["kind"] == "motion" for r in row["reactions"]])
    )


def test_a_metric_blind_to_a_damage_has_no_rank(films):
    clean, reference = films[:12, :FRAMES], films[12:, :FRAMES]
    sets = [(d, c) for d, c in damaged_sets(films[:12], FRAMES) if d.name in ("shuffle", "contrast")]
    rows = {r["damage"]: r for r in sanity_table(mean_picture, sets, clean, reference)["rows"]}
    assert rows["shuffle"]["spearman"] is None
    assert rows["contrast"]["spearman"] is not None


def test_short_films_are_refused(films):
    with pytest.raises(DataError, match="too short"):
        damaged(films[:, :6], FRAMES, damages()[0], 0)
