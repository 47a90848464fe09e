"""The client of openpi servers: against ours, and against one written from the protocol."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest
from vla_gym_policies.openpi import OpenPIPolicy, make_openpi_policy
from vla_gym_policies.remote import RemotePolicyError

from tests.support import needs
from vla_gym.errors import ContractMismatch
from vla_gym.policy import PolicySpec, connect, make_policy
from vla_gym.rollout import add_batch_axis, run_episode
from vla_gym.vector import make_vec

pytestmark = needs("openpi", "serve")

REACH = "VLA/Toy-Reach-v0"


@contextlib.contextmanager
def openpi_server(answer, metadata=None):
    """Serve as openpi's `websocket_policy_server.py` does; `answer` maps a message to a reply."""
    from openpi_client import msgpack_numpy
    from websockets.sync.server import serve

    def talk(connection):
        connection.send(msgpack_numpy.packb(metadata or {}))
        for data in connection:
            reply = answer(msgpack_numpy.unpackb(data))
            connection.send(reply if isinstance(reply, str) else msgpack_numpy.packb(reply))
            if isinstance(reply, str):
                connection.close(1011)
                return

    with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def our_server(*arguments):
    """Run `vla-gym serve` in a process of its own, and give host and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_gym.cli", "serve", *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        (address,) = re.findall(r"ws://(\S+)", process.stdout.readline())
        yield address
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@contextlib.contextmanager
def client_of(answer, metadata=None, **keywords):
    with openpi_server(answer, metadata) as address:
        policy = OpenPIPolicy(address, **keywords)
        try:
            yield policy
        finally:
            policy.close()


def chunk(length=3, entries=7):
    return {"actions": np.arange(length * entries, dtype=np.float64).reshape(length, entries)}


def observation_of(n, size=8):
    rng = np.random.default_rng(0)
    turned = np.eye(3)
    proprio = np.concatenate([[0.5, 0.0, 0.2], turned[:, 0], turned[:, 1], [1.0]])
    return {
        "rgb_primary": rng.integers(0, 256, (n, size, size, 3), np.uint8),
        "rgb_wrist": rng.integers(0, 256, (n, size, size, 3), np.uint8),
        "proprio": np.tile(proprio, (n, 1)).astype(np.float32),
        "instruction": tuple(f"task {i}" for i in range(n)),
    }


# Through our own server: the same actions, bit for bit.


def test_an_expert_behind_a_server_plays_the_same_episode():
    from tests.support import check_needs

    check_needs("metaworld")
    name = "VLA/MetaWorld-Reach-v0"
    with our_server("metaworld-expert", "--env", name) as address:
        policy = make_openpi_policy(address)
        assert policy.spec == make_policy("metaworld-expert").spec
        env = gym.make(name, **policy.spec.env_keywords(), max_episode_steps=40)
        sheet = env.unwrapped.spec_sheet
        direct, remote = connect(make_policy("metaworld-expert"), sheet), connect(policy, sheet)
        observation, _ = env.reset(seed=3)
        state, remote_state, start = None, None, np.array([True])
        for _ in range(40):
            batch = add_batch_axis(observation)
            actions, state = direct.predict(batch, state, start)
            found, remote_state = remote.predict(batch, remote_state, start)
            assert found.dtype == actions.dtype == np.float32
            np.testing.assert_array_equal(found, actions)
            start[:] = False
            observation, *_ = env.step(actions[0])
        # Episodes one after the other: the server's state begins anew with each.
        episodes = [run_episode(env, actor, 3) for actor in (direct, remote, remote)]
        assert len({(e.episode_return, e.length) for e in episodes}) == 1
        env.close()
        policy.close()


def test_a_drawing_policy_behind_a_server_draws_the_same_with_the_same_seed():
    with our_server("random", "--env", REACH) as address:
        policy = make_openpi_policy(address)
        env = gym.make(REACH, **policy.spec.env_keywords(), max_episode_steps=5)
        direct = connect(make_policy("random"), env.unwrapped.spec_sheet)
        remote = connect(policy, env.unwrapped.spec_sheet)
        one, two, other = (
            run_episode(env, p, s) for p, s in ((direct, 7), (remote, 7), (remote, 8))
        )
        assert one.episode_return == two.episode_return != other.episode_return
        with pytest.raises(
            ContractMismatch, match=r"acts in VLA/Toy-Reach-v0, the env is VLA/Toy-L"
        ):
            connect(policy, gym.make("VLA/Toy-Lift-v0").unwrapped.spec_sheet)
        env.close()
        policy.close()


def test_each_env_of_a_batch_has_a_state_of_its_own_in_the_server():
    from tests.support import check_needs

    check_needs("metaworld")
    name = "VLA/MetaWorld-DrawerOpen-v0"
    with our_server("metaworld-expert", "--env", name) as address:
        policy = make_openpi_policy(address)
        envs = make_vec(
            [name] * 3, vectorization_mode="sync", **policy.spec.env_keywords(), max_episode_steps=6
        )
        direct = connect(
            make_policy("metaworld-expert"), gym.make(name, state=True).unwrapped.spec_sheet
        )
        observation, _ = envs.reset(seed=0)
        state, remote_state, starts = None, None, np.ones(3, bool)
        for _ in range(9):  # over the end of the episodes
            actions, state = direct.predict(observation, state, starts)
            found, remote_state = policy.predict(observation, remote_state, starts)
            np.testing.assert_array_equal(found, actions)
            observation, _, terminated, truncated, _ = envs.step(actions)
            starts = terminated | truncated
        envs.close()
        policy.close()


# Another server: what is sent, what is made of its answers.


def test_a_libero_model_gets_its_keys_mirrored_pictures_and_eight_numbers():
    seen = []

    def answer(message):
        seen.append(message)
        return chunk()

    with client_of(answer, {"any": "thing"}) as policy:
        assert policy.metadata == {"any": "thing"}
        assert policy.spec == PolicySpec(
            cameras=("primary", "wrist"),
            image_size=224,
            proprio="eef",
            instruction="text",
            action_mode="ee_delta",
            action_dim=7,
            gripper="+1 closes",
        )
        observation = observation_of(2)
        actions, _ = policy.predict(observation)
    assert actions.dtype == np.float32 and actions.tolist() == [list(range(7))] * 2
    for i, message in enumerate(seen):
        assert set(message) == {
            "observation/image",
            "observation/wrist_image",
            "observation/state",
            "prompt",
        }
        assert message["prompt"] == f"task {i}"
        np.testing.assert_array_equal(
            message["observation/image"], observation["rgb_primary"][i][:, ::-1]
        )
        np.testing.assert_allclose(  # right_hand is turned against the fingers' frame
            message["observation/state"], [0.5, 0, 0.2, 0, 0, np.pi / 2, 0.04, -0.04], rtol=1e-6
        )


@pytest.mark.parametrize(("execute", "requests"), [(None, 2), (2, 3), (1, 5)])
def test_a_chunk_is_taken_step_by_step_and_an_episode_voids_it(execute, requests):
    asked = []

    def answer(message):
        asked.append(message["prompt"])
        return chunk()

    with client_of(answer, execute=execute) as policy:
        state, taken = None, []
        for _ in range(5):
            actions, state = policy.predict(observation_of(1), state, np.array([False]))
            taken.append(int(actions[0, 0]) // 7)
        assert taken == [step % (execute or 3) for step in range(5)]
        assert len(asked) == requests
        actions, state = policy.predict(observation_of(1), state, np.array([True]))
        assert actions[0, 0] == 0
        policy.predict(observation_of(2), state)  # another number of envs: all begin
        assert asked[-2:] == ["task 0", "task 1"]


def test_each_env_has_a_connection_of_its_own_and_keeps_it():
    threads = {}  # of each prompt: the server answers each connection in a thread of its own

    def answer(message):
        threads.setdefault(message["prompt"], set()).add(threading.get_ident())
        return chunk(1)

    with client_of(answer) as policy:
        state = None
        for starts in ([True] * 3, [False] * 3, [False, True, False]):
            _, state = policy.predict(observation_of(3), state, np.array(starts))
        assert len(set.union(*threads.values())) == 3
        assert [len(used) for used in threads.values()] == [1, 1, 1]


def test_other_keys_are_sent_where_they_are_asked_for():
    seen = []

    def answer(message):
        seen.append(message)
        return chunk()

    keys = {"rgb_primary": "cam", "rgb_wrist": None, "proprio": None}
    with client_of(answer, keys=keys, image_size=8) as policy:
        assert policy.spec.cameras == ("primary",) and policy.spec.proprio is None
        policy.predict(observation_of(1))
    assert set(seen[0]) == {"cam", "prompt"}


def test_the_traceback_of_the_server_is_in_the_error_and_the_next_episode_goes_on():
    replies = iter(["Traceback: no such thing as XYZ", chunk()])
    with client_of(lambda message: next(replies)) as policy:
        with pytest.raises(RemotePolicyError, match=r"(?s)127.0.0.1:\d+: .*no such thing as XYZ"):
            policy.predict(observation_of(1))
        actions, _ = policy.predict(observation_of(1))
        assert actions.shape == (1, 7)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ({"action": 1}, "with no actions, not"),
        ({"actions": np.zeros(7)}, r"with actions of shape \(7,\), not"),
        ([1], "with no actions, not"),
    ],
)
def test_an_answer_without_a_chunk_is_refused(reply, text):
    with client_of(lambda message: reply) as policy, pytest.raises(RemotePolicyError, match=text):
        policy.predict(observation_of(1))


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(RemotePolicyError, match=r"no policy server answers at ws://127.0.0.1:1 "):
        make_openpi_policy(":1")
    with pytest.raises(RemotePolicyError, match="'host:x' is not HOST:PORT"):
        make_openpi_policy("host:x")


def test_a_server_that_comes_later_is_waited_for():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_gym.cli", "serve", "zero", "--port", str(port)],
        stdout=subprocess.DEVNULL,
    )
    try:
        policy = make_openpi_policy(f"127.0.0.1:{port}", wait_s=60)
        assert policy.metadata["vla_gym"]["policy"] == "zero"
        policy.close()
    finally:
        process.terminate()
        process.wait(20)


def test_what_is_no_openpi_server_is_refused():
    from websockets.sync.server import serve

    def talk(connection):
        connection.send("hello")  # a text, no metadata
        connection.recv()

    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(RemotePolicyError, match="is no openpi server"):
                OpenPIPolicy(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
        finally:
            server.shutdown()
            thread.join()
