"""Rotations agree with scipy's, and each form gives the others back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import needs
from vla_gym.rotations import (
    euler_to_matrix,
    matrix_to_euler,
    matrix_to_quaternion,
    quaternion_to_matrix,
    quaternion_to_vector,
    rotation_vector,
    vector_to_matrix,
    vector_to_quaternion,
)

pytestmark = needs("eval")  # for scipy

angles = st.floats(-np.pi, np.pi)
vectors = st.tuples(angles, angles, angles).map(np.array)


def scipy_rotation():
    from scipy.spatial.transform import Rotation

    return Rotation


@given(vectors)
def test_euler_angles_are_extrinsic_xyz(euler):
    wanted = scipy_rotation().from_euler("xyz", euler).as_matrix()
    np.testing.assert_allclose(euler_to_matrix(euler), wanted, atol=1e-12)
    again = matrix_to_euler(euler_to_matrix(euler))
    assert abs(again[1]) <= np.pi / 2
    np.testing.assert_allclose(euler_to_matrix(again), wanted, atol=1e-8)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
@given(roll=angles, yaw=angles)
def test_euler_angles_where_they_are_not_unique_give_the_rotation_back(pitch, roll, yaw):
    matrix = euler_to_matrix([roll, pitch, yaw])
    np.testing.assert_allclose(euler_to_matrix(matrix_to_euler(matrix)), matrix, atol=1e-7)


@given(vectors)
def test_vectors_are_axis_times_angle(vector):
    wanted = scipy_rotation().from_rotvec(vector)
    np.testing.assert_allclose(vector_to_matrix(vector), wanted.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(
        quaternion_to_matrix(vector_to_quaternion(vector)), wanted.as_matrix(), atol=1e-12
    )


@given(vectors)
def test_the_shortest_vector_comes_back(vector):
    matrix = vector_to_matrix(vector)
    for found in (rotation_vector(matrix), quaternion_to_vector(matrix_to_quaternion(matrix))):
        assert np.linalg.norm(found) <= np.pi + 1e-9
        np.testing.assert_allclose(vector_to_matrix(found), matrix, atol=1e-6)


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1))
def test_half_a_turn_has_one_of_its_two_vectors(axis):
    half = np.pi * np.array(axis) / np.linalg.norm(axis)
    matrix = scipy_rotation().from_rotvec(half).as_matrix()
    found = rotation_vector(matrix)
    np.testing.assert_allclose(vector_to_matrix(found), matrix, atol=1e-6)


@given(vectors)
def test_both_quaternions_of_a_rotation_mean_the_same(vector):
    quaternion = vector_to_quaternion(vector)
    np.testing.assert_allclose(
        quaternion_to_vector(quaternion), quaternion_to_vector(-quaternion), atol=1e-9
    )
    assert matrix_to_quaternion(vector_to_matrix(vector))[3] >= -1e-12
