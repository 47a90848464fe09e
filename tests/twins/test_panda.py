"""The Panda of the twins: kinematics, rotations, servos, simplified meshes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import needs

pytestmark = needs("rlbench-twin")

from vla_gym.rotations import (  # noqa: E402
    rotation_vector,
    vector_to_matrix,
    vector_to_quaternion,
)
from vla_gym.twins import meshes  # noqa: E402
from vla_gym.twins.panda import (  # noqa: E402
    FINGER_OPEN_M,
    Kinematics,
    Mount,
    Panda,
    Pose,
    add_panda,
)
from vla_gym.twins.rlbench.scene import MOUNT  # noqa: E402


def test_home_is_where_rlbench_records_it():
    # Recorded: tip (0.2785, -0.0082, 1.4719), quaternion xyzw (0, 0.9927, 0, 0.1209).
    tip = Kinematics(MOUNT).forward(np.array(MOUNT.home))
    np.testing.assert_allclose(tip.position, (0.2785, -0.0082, 1.4719), atol=3e-3)
    quat = vector_to_quaternion(rotation_vector(tip.rotation))
    np.testing.assert_allclose(quat, (0, 0.9927, 0, 0.1209), atol=2e-3)


@settings(max_examples=60)
@given(st.floats(0.35, 0.68), st.floats(-0.8, 0.8), st.floats(0.8, 1.05), st.floats(-1.4, 1.4))
def test_inverse_kinematics_find_poses_above_the_table(reach, bearing, z, yaw):
    solver = Kinematics(MOUNT)
    x = MOUNT.position[0] + reach * np.cos(bearing)
    y = MOUNT.position[1] + reach * np.sin(bearing)
    rotation = vector_to_matrix(np.array([0, 0, yaw])) @ np.diag([-1.0, 1.0, -1.0])
    joints, error = solver.solve(Pose(np.array([x, y, z]), rotation), np.array(MOUNT.home), 100)
    assert error < 1e-3
    found = solver.forward(joints)
    np.testing.assert_allclose(found.position, (x, y, z), atol=1e-3)
    np.testing.assert_allclose(found.rotation, rotation, atol=2e-3)


def test_a_pose_out_of_reach_leaves_the_best_there_is():
    solver = Kinematics(MOUNT)
    home = solver.forward(np.array(MOUNT.home))
    far = Pose(home.position + np.array([2.0, 0, 0]), home.rotation)
    joints, error = solver.solve(far, np.array(MOUNT.home), 60)
    assert np.isfinite(joints).all() and 0.5 < error < 2.5
    reached = solver.forward(joints).position
    assert np.linalg.norm(reached - np.array(MOUNT.position)) < 1.3  # a Panda's arm is 0.86 m


def test_an_arm_that_was_driven_to_its_limits_comes_back():
    solver = Kinematics(MOUNT)
    rng = np.random.default_rng(0)

    def go(joints, offset):
        tip = solver.forward(joints)
        found, _ = solver.solve(Pose(tip.position + offset, tip.rotation), joints, 8)
        change = found - joints
        return joints + change / max(1.0, np.abs(change).max() / 0.1)  # 2 rad/s for 50 ms

    stuck = 0
    for _ in range(60):
        direction = rng.normal(size=3)
        direction *= 0.025 / np.linalg.norm(direction)
        joints = np.array(MOUNT.home)
        for _ in range(40):  # 1 m: out of reach in every direction
            joints = go(joints, direction)
        far = solver.forward(joints).position
        for _ in range(12):
            joints = go(joints, -direction)
        back = solver.forward(joints).position
        stuck += (far - back) @ direction / 0.025 < 0.05
    assert stuck <= 1  # 37 % without the second try and with joints clipped after the step


def make_robot(mount=MOUNT):
    import mujoco

    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = 0.005
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    add_panda(spec, mount)
    model = spec.compile()
    data = mujoco.MjData(model)
    robot = Panda(model, data, mount)
    robot.reset()
    mujoco.mj_forward(model, data)
    return mujoco, model, data, robot


def test_the_arm_holds_its_pose_against_gravity():
    mujoco, model, data, robot = make_robot()
    before = robot.tip.position
    mujoco.mj_step(model, data, 400)
    np.testing.assert_allclose(robot.tip.position, before, atol=1e-4)


def test_the_fingers_open_and_close():
    mujoco, model, data, robot = make_robot()
    assert robot.opening == pytest.approx(1.0)
    for command, expected in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
        robot.command_fingers(command)
        mujoco.mj_step(model, data, 300)
        assert robot.opening == pytest.approx(expected, abs=0.03)
        pads = [data.geom(f"panda_finger{i}_pad").xpos for i in (1, 2)]
        gap = np.linalg.norm(pads[0] - pads[1]) - 2 * 0.0065
        assert gap == pytest.approx(2 * FINGER_OPEN_M * expected, abs=4e-3)
        # They open along the tip's y axis.
        across = robot.tip.rotation.T @ (pads[0] - pads[1])
        assert abs(across[1]) == pytest.approx(np.abs(across).max())


def test_a_turned_mount_turns_the_robot():
    turned = Mount((0.1, 0.2, 0.3), MOUNT.home, yaw=np.pi / 2, tip_offset_m=MOUNT.tip_offset_m)
    straight = Kinematics(Mount((0, 0, 0), MOUNT.home, tip_offset_m=MOUNT.tip_offset_m))
    x, y, z = straight.forward(np.array(MOUNT.home)).position
    found = Kinematics(turned).forward(np.array(MOUNT.home)).position
    np.testing.assert_allclose(found, (0.1 - y, 0.2 + x, 0.3 + z), atol=1e-9)


def test_a_spec_in_degrees_is_refused():
    import mujoco

    with pytest.raises(ValueError, match=r"compiler\.degree = False"):
        add_panda(mujoco.MjSpec(), MOUNT)


def test_the_meshes_are_simplified_once_and_then_read(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_GYM_CACHE", str(tmp_path))
    meshes.load_panda_parts.cache_clear()
    made = meshes.load_panda_parts()
    (file,) = tmp_path.iterdir()
    meshes.load_panda_parts.cache_clear()
    monkeypatch.setattr(meshes, "_simplify_panda", lambda: pytest.fail("simplified again"))
    read = meshes.load_panda_parts()
    assert [part.body for part in made] == [part.body for part in read]
    for one, other in zip(made, read, strict=True):
        assert one.rgb == other.rgb
        np.testing.assert_array_equal(one.vertices, other.vertices)
        np.testing.assert_array_equal(one.faces, other.faces)
        assert len(one.faces) <= meshes.FACES
    # Sizes as upstream's: link 0 is 0.22 m long and 0.14 m high.
    base = np.concatenate([part.vertices for part in read if part.body == "link0"])
    np.testing.assert_allclose(np.ptp(base, axis=0), (0.224, 0.190, 0.140), atol=3e-3)
    monkeypatch.undo()
    file.write_bytes(b"not a zip file")  # what a full disk leaves
    monkeypatch.setenv("VLA_GYM_CACHE", str(tmp_path))
    meshes.load_panda_parts.cache_clear()
    assert len(meshes.load_panda_parts()) == len(made)
    meshes.load_panda_parts.cache_clear()


def test_without_a_cache_folder_it_works_all_the_same(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("VLA_GYM_CACHE", str(blocked))
    meshes.load_panda_parts.cache_clear()
    assert len(meshes.load_panda_parts()) > 10
    meshes.load_panda_parts.cache_clear()
