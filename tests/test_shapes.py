"""Painters: laws of the solids, and of what becomes of stray pieces."""

import numpy as np
import pytest
from scipy import ndimage

from mr2ct_lib.patients.grids import (
    Nodes,
    connected_runs,
    interpolate_lattice,
    join_strays,
    put_rows,
    separable_sum,
    voxel_centres,
)
from mr2ct_lib.patients.shapes import Waves, add_chain, chain_depth, ellipsoid_depth, section_table, tube, tube_bounds


def test_voxel_centres_follow_an_oblique_affine():
    affine = np.array([[1.0, 0.5, 0, 3], [0, 2, 0, -4], [0.1, 0, 5, 1], [0, 0, 0, 1]])
    points = voxel_centres((2, 3, 4), affine)
    assert points[:, 1, 2, 3] == pytest.approx((affine @ [1, 2, 3, 1])[:3])


def test_round_tube_is_a_cylinder():
    points = np.random.default_rng(0).uniform(-20, 20, (3, 500)).astype(np.float32)
    distance = tube(*points, [(-40, 0, 0, 10, 10, 0, 0), (40, 0, 0, 10, 10, 0, 0)])
    assert distance == pytest.approx(np.hypot(points[0], points[1]) - 10, abs=0.02)


def test_tube_has_the_volume_of_its_sections():
    grid = voxel_centres((60, 60, 60), np.diag([1.0, 1, 1, 1]))
    sections = [(10, 30, 30, 20, 8, 30, 5), (50, 30, 30, 20, 8, 40, 5)]
    assert (tube(*grid, sections) < 0).sum() == pytest.approx(np.pi * 20 * 8 * 40, rel=0.05)


def test_angles_go_the_short_way_round():
    # 85 and -85 degrees are 10 degrees apart: half way the section stands upright
    sections = [(-10, 0, 0, 20, 2, 85, 0), (10, 0, 0, 20, 2, -85, 0)]
    probe = np.array([[0.0, 18.0], [18.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    upright, flat = tube(*probe, sections)
    assert upright < 0 < flat


def test_chain_of_two_points_is_a_capsule():
    points = np.random.default_rng(1).uniform(-20, 20, (3, 200)).astype(np.float32)
    along = np.clip(points[2], 0, 10)
    expected = 4 - np.sqrt(points[0] ** 2 + points[1] ** 2 + (points[2] - along) ** 2)
    assert chain_depth(*points, [(0, 0, 0, 4), (0, 0, 10, 4)]) == pytest.approx(expected, abs=1e-4)


def test_a_flattened_chain_is_wide():
    points = np.array([[7.0, 0.0], [0.0, 7.0], [5.0, 5.0]])
    wide, narrow = chain_depth(*points, [(0, 0, 0, 4), (0, 0, 10, 4)], flat=(0.5, 1, 1))
    assert wide == pytest.approx(0.5) and narrow == pytest.approx(-3)


def test_a_solid_united_with_a_chain_has_its_inside_and_its_depth():
    points = np.random.default_rng(1).uniform(-30, 30, (3, 20000)).astype(np.float32)
    ball = np.sqrt((points**2).sum(axis=0)) - 9
    chain = [(0, 0, 0, 4), (0, 10, 20, 3), (-15, 10, 20, 5)]
    expected = np.minimum(ball, -chain_depth(*points, chain))
    add_chain(ball, *points, chain)
    np.testing.assert_array_equal(np.minimum(ball, 0), np.minimum(expected, 0))
    assert (chain_depth(*points, chain)[ball > 0] < 0).all()


def test_ellipsoid_with_equal_radii_is_a_ball():
    points = np.random.default_rng(2).normal(0, 8, (500, 3))
    np.testing.assert_allclose(
        ellipsoid_depth(points, (0, 0, 0), (9, 9, 9)), 9 - np.linalg.norm(points, axis=1), atol=1e-9
    )


def test_waves_of_a_seed_have_zero_mean_unit_spread_and_are_its_own():
    points = np.random.default_rng(3).uniform(-2000, 2000, (3, 20000))
    first = Waves.of_seed(4, 50).on(*points)
    assert abs(first.mean()) < 0.05
    assert first.std() == pytest.approx(1, abs=0.05)
    assert np.array_equal(first, Waves.of_seed(4, 50).on(*points))
    assert not np.array_equal(first, Waves.of_seed(5, 50).on(*points))


def test_waves_have_unit_variance_and_the_slope_of_their_differences():
    wave = Waves.random(np.random.default_rng(0), 16, 20.0)
    points = np.random.default_rng(1).uniform(-300, 300, (4000, 3))
    value, slope = wave.value_and_slope(points)
    assert value.std() == pytest.approx(1, abs=0.1)
    steps = [(wave(points + 1e-3 * axis) - wave(points - 1e-3 * axis)) / 2e-3 for axis in np.eye(3)]
    np.testing.assert_allclose(slope, np.linalg.norm(steps, axis=0), atol=1e-3)
    np.testing.assert_allclose(value, wave(points))
    np.testing.assert_allclose(wave.on(*points.T), wave(points), atol=1e-4)


def test_a_tube_given_as_its_table_is_the_same():
    sections = [(-40, 0, 0, 10, 5, 20, 3), (40, 5, 0, 12, 5, 60, 0)]
    points = np.random.default_rng(0).uniform(-20, 20, (3, 500)).astype(np.float32)
    np.testing.assert_array_equal(tube(*points, section_table(sections)), tube(*points, sections))


def test_separable_sum_is_the_sum_over_all_nodes():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(2, 3, 4, 5)), [rng.normal(size=(n + 2, n)) for n in (3, 4, 5)]
    np.testing.assert_allclose(separable_sum(values, *weights), np.einsum("clmn,il,jm,kn->cijk", values, *weights))


def test_lattice_interpolation_is_exact_for_linear_fields():
    origin, step = np.array([-5.0, -5, -5]), 4.0
    lattice = np.diag([step, step, step, 1.0])
    lattice[:3, 3] = origin
    nodes = voxel_centres((8, 8, 8), lattice)
    affine = np.array([[1.5, 0, 0, 0], [0, 1, 0, 1], [0, 0, 2, -3], [0, 0, 0, 1]])
    found = interpolate_lattice(nodes, origin, step, (5, 6, 7), affine)
    assert found == pytest.approx(voxel_centres((5, 6, 7), affine), abs=1e-3)


@pytest.mark.parametrize("spacing", [0.7, 1.9, 5.0])
def test_nodes_find_every_voxel_of_a_bent_tube_and_little_more(spacing):
    shape = tuple(int(n / spacing) for n in (100, 90, 120))
    q = voxel_centres(shape, np.diag([spacing, spacing, spacing, 1.0]))
    q = q + 3 * np.sin(q[[1, 2, 0]] / 15).astype(np.float32)  # not a straight grid
    sections = [(20, 30, 30, 16, 5, 20, 4), (60, 50, 45, 12, 6, 50, 0), (100, 70, 40, 4, 3, 80, 0)]
    whole, nodes = tube(*q, sections) < 0, Nodes(q)
    found, seen = np.zeros((2, *nodes.points.shape[1:]), bool)
    for where, *point in nodes.near(*tube_bounds(sections), lambda x, y, z: tube(x, y, z, sections) < 0):
        put_rows(found, where, tube(*point, sections) < 0)
        seen[where] = True
    np.testing.assert_array_equal(nodes.on_grid(found), whole)
    assert whole.any()
    if spacing < 1:
        assert seen.sum() < 0.2 * seen.size


def test_nodes_see_nothing_where_there_is_nothing():
    q = voxel_centres((20, 22, 24), np.eye(4))
    assert list(Nodes(q).near((100, 0, 0), (120, 9, 9), lambda x, y, z: x > 0)) == []
    assert list(Nodes(q).near((0, 0, 0), (9, 9, 9), lambda x, y, z: x > 99)) == []


@pytest.mark.parametrize("shape", [(61, 47, 50), (1, 47, 50), (7, 1, 3)])
def test_layers_are_those_of_every_voxel(shape):
    q = voxel_centres(shape, np.diag([0.8, 0.9, 0.7, 1.0]))

    def shells(x, y, z):
        return np.digitize(np.sqrt((x - 20) ** 2 + (y - 20) ** 2 + (z - 15) ** 2), [8, 10, 17]).astype(np.uint8)

    nodes = Nodes(q)
    np.testing.assert_array_equal(nodes.on_grid(nodes.layers(shells)), shells(*q))


def test_strays_go_to_their_surroundings_and_what_may_go_on_beyond_the_grid_stays():
    labels = np.full((12, 10, 8), 9, np.uint8)
    labels[1:5, 2:8, 2:6] = 3  # the structure
    labels[8, 5, 4] = labels[8, 6, 4] = 3  # a stray piece of it
    labels[11, 2, 2] = 3  # touches a face: may be the tip of something larger
    labels[9, 9, 6] = 5  # another structure's only piece
    expected = labels.copy()
    expected[8, 5:7, 4] = 9
    join_strays(labels, np.where(labels == 9, 0, labels))
    np.testing.assert_array_equal(labels, expected)
    join_strays(labels, np.where(labels == 9, 0, labels), inner_faces=((0, -1),))  # nothing goes on beyond this face
    expected[11, 2, 2] = 9
    np.testing.assert_array_equal(labels, expected)


def test_pieces_that_meet_at_a_corner_are_one():
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1:3, 1:3, 1:3] = labels[3, 3, 3] = 1
    before = labels.copy()
    join_strays(labels, labels.copy())
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("coarse", [1, 2])
def test_connected_runs_are_the_pieces_of_every_value(coarse):
    rng = np.random.default_rng(coarse)
    for _ in range(20):
        structures = rng.choice(5, (7, 8, 9), p=[0.4, 0.15, 0.15, 0.15, 0.15]).astype(np.uint8)
        structures = np.kron(structures, np.ones((coarse,) * 3, np.uint8))
        found, last = np.zeros(structures.shape, int), 0
        for (i, j, k), length, piece in zip(*(part.T for part in connected_runs(structures)), strict=True):
            found[i, j, k : k + length] = 1 + piece
        assert ((found > 0) == (structures > 0)).all()
        for value in range(1, 5):
            pieces, count = ndimage.label(structures == value, np.ones((3, 3, 3)))
            pairs = np.unique(np.stack([pieces, found])[:, structures == value], axis=1)
            assert pairs.shape[1] == count and (np.diff(pairs[1]) > 0).all()  # one to one, in the same order
            last += count
        assert found.max() == last
