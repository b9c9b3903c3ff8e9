"""Addresses in dense maps, and writes that go nowhere."""

from __future__ import annotations

import pytest
import torch

from gfl_det.ops.layout import SPARE_PLACES, Layout, spare_places, with_values, write_valid

ADDRESS, VALID = torch.tensor([2, 0, 1]), torch.tensor([True, False, True])


def test_values_of_valid_slots_alone_are_written() -> None:
    flat = torch.tensor([1.0, 2.0, 3.0])
    changed = with_values(flat, ADDRESS, VALID, torch.tensor([30.0, 10.0, 20.0]))
    assert changed.tolist() == [1, 20, 30]
    assert with_values(flat, ADDRESS, VALID, 9.0).tolist() == [1, 9, 9]
    assert flat.tolist() == [1, 2, 3]


def test_nowhere_is_the_last_place() -> None:
    memory = torch.zeros(4)
    write_valid(memory, ADDRESS, VALID, 5.0)
    assert memory.tolist() == [0, 5, 5, 5]


@pytest.mark.parametrize('count', [0, 1, SPARE_PLACES, 100])
def test_spare_places_are_shared_by_neighbours(count: int) -> None:
    places = spare_places(torch.zeros(count))
    assert places.tolist() == [slot * SPARE_PLACES // count for slot in range(count)]


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_addresses_and_views_are_those_of_the_maps(layout: torch.memory_format) -> None:
    maps = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    memory = torch.empty(2 * maps.numel())
    memory[: maps.numel()] = maps.as_strided((maps.numel(),), (1,))
    found = Layout.of(maps)
    assert found.channels_last == (layout == torch.channels_last)
    assert torch.equal(found.view(memory), maps)
    assert torch.equal(found.view(memory, 1), maps[:1])
    image, channel = torch.tensor([0, 1])[:, None, None], torch.arange(3)[:, None]
    places = found.address(image, channel, torch.arange(20))
    assert torch.equal(memory[places], maps.flatten(2))


def test_maps_with_gaps_are_laid_out_anew() -> None:
    assert not Layout.of(torch.zeros(2, 3, 4, 10)[..., ::2]).channels_last
