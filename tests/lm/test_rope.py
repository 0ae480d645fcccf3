"""Rotary positions: products depend on differences of positions, and nothing else."""

import cmath
import math

import pytest
import torch
from pydantic import ValidationError

from tessera.configs.schema import ConfigError
from tessera.lm.layers.position_embedding import count_back
from tessera.lm.ops.rotary import (
    GridRopeConfig,
    Llama3ScalingConfig,
    grid_columns,
    grid_coordinates,
    rotary_angles,
    rotary_table,
    rotate,
    sinusoidal_embedding,
    sinusoids,
)
from tessera.tokenize.spec import AudioGeometry, ImageGeometry


def slow_scaled(speed, scaling):
    """The rule of Llama 3.1, case by case, by the wavelength."""
    wavelength = 2 * math.pi / speed
    if wavelength < scaling.steps / scaling.high_factor:
        return speed
    if wavelength > scaling.steps / scaling.low_factor:
        return speed / scaling.factor
    share = (scaling.steps / wavelength - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    return (1 - share) * speed / scaling.factor + share * speed


@pytest.mark.parametrize("steps", [3, 40, 1000, 10**6])
def test_scaled_frequencies_equal_the_rule_case_by_case(steps):
    scaling = Llama3ScalingConfig(factor=8, low_factor=1.5, high_factor=6, steps=steps)
    found = rotary_angles(torch.tensor([[1]]), 32, 1000.0, scaling)[0]
    expected = [slow_scaled(1000.0 ** (-i / 16), scaling) for i in range(16)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_scaling_factors_are_checked():
    with pytest.raises(ValidationError, match="low_factor 4.0 must be below high_factor 4.0"):
        Llama3ScalingConfig(factor=8, low_factor=4)


def slow_rotate(x, coordinates, base):
    """x [E], coordinates: one number for each share of the pairs."""
    pairs = len(x) // 2
    share = pairs // len(coordinates)
    out = []
    for i in range(pairs):
        angle = coordinates[i // share] * base ** (-(i % share) / share)
        turned = complex(x[2 * i], x[2 * i + 1]) * cmath.exp(1j * angle)
        out += [turned.real, turned.imag]
    return torch.tensor(out)


@pytest.mark.parametrize(
    "coordinates", [[[0], [1], [7], [-3]], [[0, 0], [2, 5], [1, 0], [-2, -2]]], ids=["time", "grid"]
)
def test_rotate_equals_the_loop(coordinates):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 2, 8)
    found = rotate(x, rotary_table(torch.tensor([coordinates]), 8, 100.0))
    for s, place in enumerate(coordinates):
        for h in range(2):
            torch.testing.assert_close(found[0, s, h], slow_rotate(x[0, s, h].tolist(), place, 100.0))
    assert found[0, 0].equal(x[0, 0])  # position 0 turns nothing


def test_products_depend_on_differences_only():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 16).double(), torch.randn(1, 1, 1, 16).double()

    def product(at, other):
        q, k = (rotate(x, rotary_table(torch.tensor([[[p]]]), 16, 1e4)) for x, p in ((query, at), (key, other)))
        return float((q * k).sum())

    # the table is float32: at position 300 its angles carry an error of 300 * 2^-24
    assert product(3, 1) == pytest.approx(product(302, 300), abs=1e-3)
    assert product(3, 1) == pytest.approx(product(-1, -3), abs=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 0.1


def test_bf16_keeps_far_positions_apart():
    x = torch.ones(1, 2, 1, 4, dtype=torch.bfloat16)
    turned = rotate(x, rotary_table(torch.tensor([[[256], [257]]]), 4, 1e4))
    assert turned.dtype == torch.bfloat16
    assert not turned[0, 0].equal(turned[0, 1])


def test_grid():
    positions = torch.tensor([[-2, -1, 0, 1, 2, 3]])
    frames = positions.clamp(min=0)
    expected = [[[-2, -2], [-1, -1], [0, 0], [0, 1], [0, 2], [1, 0]]]
    assert grid_coordinates(positions, frames, 3).tolist() == expected
    places = torch.tensor([[0.5, 0.5], [0, 0], [0, 1]])
    beyond = grid_coordinates(torch.arange(5), torch.arange(5), 3, places)  # buffers of a rounded capacity
    assert beyond[:3].equal(places) and beyond[3:].equal(places[[2, 2]])
    assert grid_columns(GridRopeConfig(), ImageGeometry(height=8, width=8, rows=2, columns=3)) == 3
    assert grid_columns(GridRopeConfig(columns=5), ImageGeometry(height=8, width=8, rows=2, columns=3)) == 5
    with pytest.raises(ConfigError, match="rope kind 'grid' needs 'columns'"):
        grid_columns(GridRopeConfig(), AudioGeometry(sample_rate=16000, samples_per_frame=320))


def test_prefix_positions_count_back_over_real_tokens():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    back = count_back(mask)
    assert [row[keep].tolist() for row, keep in zip(back, mask, strict=True)] == [[-4, -3, -2, -1], [-2, -1], [-2, -1]]


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids(width):
    places = sinusoids(5, width, torch.device("cpu"))
    assert places.shape == (5, width)
    assert len({tuple(row.tolist()) for row in places}) == 5


@pytest.mark.parametrize("width", [8, 9])
def test_sinusoids_are_cosines_then_sines(width):
    positions = torch.tensor([[-3, 0, 1, 700]])
    found = sinusoidal_embedding(positions, width, 100.0)
    for position, row in zip(positions[0].tolist(), found[0].tolist(), strict=True):
        angles = [position * 100.0 ** (-i / 3) for i in range(4)]  # the last of the four speeds is 1 / base
        expected = [*map(math.cos, angles), *map(math.sin, angles), *([0.0] if width == 9 else [])]
        assert row == pytest.approx(expected, abs=1e-4)
