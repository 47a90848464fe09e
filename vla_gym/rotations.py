"""Rotations as matrices, rotation vectors, Euler angles and quaternions: NumPy only.

Matrices map body to world, shape (3, 3). Rotation vectors are axis times angle [rad]. Euler angles
are extrinsic xyz [rad]: R = Rz(c) Ry(b) Rx(a). Quaternions are x, y, z, w.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "euler_to_matrix",
    "matrix_to_euler",
    "matrix_to_quaternion",
    "quaternion_to_matrix",
    "quaternion_to_vector",
    "rotation_vector",
    "vector_to_matrix",
    "vector_to_quaternion",
]

Array = NDArray[np.float64]


def rotation_vector(matrix: Array) -> Array:
    """Return axis times angle [rad] of a rotation matrix, shape (3,); its length is <= pi."""
    skew = np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )
    sine = math.sqrt(float(skew @ skew)) / 2
    angle = math.atan2(sine, (matrix[0, 0] + matrix[1, 1] + matrix[2, 2] - 1) / 2)
    if sine > 1e-6:
        return skew * (angle / (2 * sine))
    if angle < 1.0:
        return skew / 2
    # Near half a turn the axis is the column of matrix + 1 that is longest.
    columns = matrix + np.eye(3)
    axis = columns[:, int(np.argmax(np.diag(columns)))]
    return axis / np.linalg.norm(axis) * angle


def vector_to_matrix(vector: Array) -> Array:
    """Return the rotation matrix of axis times angle [rad]."""
    x, y, z = vector.tolist()
    angle = math.sqrt(x * x + y * y + z * z)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = x / angle, y / angle, z / angle
    sine, cosine = math.sin(angle), math.cos(angle)
    rest = 1 - cosine
    return np.array(  # Rodrigues' formula
        [
            [cosine + rest * x * x, rest * x * y - sine * z, rest * x * z + sine * y],
            [rest * x * y + sine * z, cosine + rest * y * y, rest * y * z - sine * x],
            [rest * x * z - sine * y, rest * y * z + sine * x, cosine + rest * z * z],
        ]
    )


def euler_to_matrix(angles: ArrayLike) -> Array:
    """Return the rotation matrix of extrinsic xyz Euler angles [rad], shape (3,)."""
    a, b, c = np.asarray(angles, np.float64).tolist()
    ca, sa, cb, sb, cc, sc = (f(v) for v in (a, b, c) for f in (math.cos, math.sin))
    return np.array(
        [
            [cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa],
            [sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa],
            [-sb, cb * sa, cb * ca],
        ]
    )


def matrix_to_euler(matrix: Array) -> Array:
    """Return extrinsic xyz Euler angles [rad], shape (3,); the middle one is in [-pi/2, pi/2].

    Where that one is +-pi/2 the other two are not unique; the first is 0 there.
    """
    cosine = math.hypot(matrix[0, 0], matrix[1, 0])
    b = math.atan2(-matrix[2, 0], cosine)
    if cosine < 1e-9:
        return np.array([0.0, b, math.atan2(-matrix[0, 1], matrix[1, 1])])
    a = math.atan2(matrix[2, 1], matrix[2, 2])
    return np.array([a, b, math.atan2(matrix[1, 0], matrix[0, 0])])


def matrix_to_quaternion(matrix: Array) -> Array:
    """Return the unit quaternion (x, y, z, w) of a rotation matrix; w >= 0."""
    return vector_to_quaternion(rotation_vector(matrix))


def vector_to_quaternion(vector: ArrayLike) -> Array:
    """Return the unit quaternion (x, y, z, w) of a rotation vector [rad], shape (3,)."""
    x, y, z = np.asarray(vector, np.float64).tolist()
    half = math.sqrt(x * x + y * y + z * z) / 2
    share = math.sin(half) / (2 * half) if half > 1e-9 else 0.5
    return np.array([x * share, y * share, z * share, math.cos(half)])


def quaternion_to_vector(quaternion_xyzw: ArrayLike) -> Array:
    """Return the rotation vector [rad] of a unit quaternion (x, y, z, w); its length is <= pi."""
    quaternion = np.asarray(quaternion_xyzw, np.float64)
    if quaternion[3] < 0:
        quaternion = -quaternion
    sine = float(np.linalg.norm(quaternion[:3]))
    if sine < 1e-12:
        return 2 * quaternion[:3]
    return 2 * np.arctan2(sine, quaternion[3]) / sine * quaternion[:3]


def quaternion_to_matrix(quaternion_xyzw: ArrayLike) -> Array:
    """Return the rotation matrix of a unit quaternion (x, y, z, w)."""
    x, y, z, w = np.asarray(quaternion_xyzw, np.float64).tolist()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
