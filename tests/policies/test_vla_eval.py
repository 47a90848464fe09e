"""The client of vla-eval model servers: against a small one written from the protocol, and theirs.

Theirs is tested where VLA_GYM_VLA_EVAL_PYTHON is an interpreter that has vla-eval 0.8.0.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
from vla_gym_policies.remote import RemotePolicyError
from vla_gym_policies.vla_eval import VLA_EVAL, VLAEvalPolicy, make_vla_eval_policy

from tests.support import needs
from vla_gym.errors import ContractMismatch
from vla_gym.policy import PolicySpec

pytestmark = needs("vla-eval")

PYTHON = os.environ.get("VLA_GYM_VLA_EVAL_PYTHON")

LIBERO_ACTIONS = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle"},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive"},
}
GREETING = {
    "harness_version": "0.8.0",
    "protocol_version": 1,
    "model_server": "Small",
    "capabilities": {},
    "observation_params": {"send_wrist_image": True, "send_state": True},
    "action_spec": LIBERO_ACTIONS,
}


def pack(value):
    import msgpack

    def encode(array):
        head = {"dtype": array.dtype.str, "shape": list(array.shape)}
        return {"__ndarray__": True, "data": array.tobytes(), **head}

    return msgpack.packb(value, default=encode)


def unpack(data):
    import msgpack

    def decode(found):
        if "__ndarray__" not in found:
            return found
        return np.frombuffer(found["data"], found["dtype"]).reshape(found["shape"])

    return msgpack.unpackb(data, object_hook=decode)


@contextlib.contextmanager
def small_server(answer, greeting=GREETING):
    """Speak protocol 1; `answer` maps an observation to (type, payload). Gives address and log."""
    from websockets.sync.server import serve

    log = []

    def talk(connection):
        for data in connection:
            message = unpack(data)
            assert set(message) == {"type", "payload", "seq", "timestamp"}
            assert abs(message["timestamp"] - time.time()) < 60
            log.append((message["type"], message["payload"], threading.get_ident()))
            replies = {
                "hello": lambda _: ("hello", greeting),
                "observation": answer,
            }
            if message["type"] in replies:
                kind, payload = replies[message["type"]](message["payload"])
                reply = {"type": kind, "payload": payload, "seq": message["seq"], "timestamp": 0.0}
                connection.send(pack(reply))

    with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", log
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def client_of(answer, greeting=GREETING, **keywords):
    with small_server(answer, greeting) as (address, log):
        policy = VLAEvalPolicy(address, **keywords)
        try:
            yield policy, log
        finally:
            policy.close()


def observation_of(n, size=8):
    rng = np.random.default_rng(0)
    return {
        "rgb_primary": rng.integers(0, 256, (n, size, size, 3), np.uint8),
        "rgb_wrist": rng.integers(0, 256, (n, size, size, 3), np.uint8),
        "proprio": np.tile(np.array([0.5, 0, 0.2, 1, 0, 0, 0, 1, 0, 1], np.float32), (n, 1)),
        "instruction": tuple(f"task {i}" for i in range(n)),
    }


def single(observation):
    return "action", {"actions": np.arange(7, dtype=np.float32)}


def chunk(observation):
    return "action", {"actions": np.arange(14, dtype=np.float32).reshape(2, 7)}


def test_the_greeting_says_what_the_policy_reads_and_speaks():
    with client_of(single) as (policy, log):
        assert policy.metadata["model_server"] == "Small"
        assert policy.spec == PolicySpec(
            cameras=("primary", "wrist"),
            image_size=256,
            proprio="eef",
            instruction="text",
            action_mode="ee_delta",
            action_dim=7,
            gripper="+1 closes",
            rotation="axis-angle",
        )
        assert log[0][1]["protocol_version"] == 1
    formats = {"gripper": {"format": "binary_close_negative"}, "rotation": {"format": "euler_xyz"}}
    greeting = {**GREETING, "action_spec": formats, "observation_params": {}}
    with client_of(single, greeting) as (policy, log):
        assert (policy.spec.gripper, policy.spec.rotation) == ("+1 opens", "euler xyz")
        assert policy.spec.cameras == ("primary",) and policy.spec.proprio is None
        policy.predict(observation_of(1))
        assert set(log[-1][1]) == {"images", "task_description"}
        assert set(log[-1][1]["images"]) == {"agentview"}


def test_an_observation_is_that_of_their_libero_benchmark():
    with client_of(single) as (policy, log):
        observation = observation_of(2)
        actions, _ = policy.predict(observation)
    assert actions.dtype == np.float32 and actions.tolist() == [list(range(7))] * 2
    sent = [payload for kind, payload, _ in log if kind == "observation"]
    sent.sort(key=lambda payload: payload["task_description"])
    for i, payload in enumerate(sent):
        assert set(payload) == {"images", "states", "task_description"}
        assert list(payload["images"]) == ["agentview", "wrist"]  # some servers go by the order
        np.testing.assert_array_equal(
            payload["images"]["agentview"], observation["rgb_primary"][i][:, ::-1]
        )
        np.testing.assert_allclose(  # right_hand is turned against the fingers' frame
            payload["states"], [0.5, 0, 0.2, 0, 0, np.pi / 2, 0.04, -0.04], rtol=1e-6
        )


def test_each_env_has_a_session_whose_episodes_begin_and_end():
    with client_of(single) as (policy, log):
        state = None
        for starts in ([True, True], [False, False], [False, True]):
            _, state = policy.predict(observation_of(2), state, np.array(starts))
    talks = {}
    for kind, payload, session in log:
        talks.setdefault(session, []).append((kind, payload))
    first, second = ([kind for kind, _ in talk] for talk in talks.values())
    step = ["observation"]
    assert first == ["hello", "episode_start", *step * 3, "episode_end"]
    again = ["episode_end", "episode_start"]
    assert second == ["hello", "episode_start", *step * 2, *again, *step, "episode_end"]
    starts = [payload for kind, payload, _ in log if kind == "episode_start"]
    assert {"task": {"name": "task 1"}} in starts


@pytest.mark.parametrize(("answer", "requests"), [(single, 4), (chunk, 2)])
def test_a_chunk_is_taken_step_by_step(answer, requests):
    with client_of(answer) as (policy, log):
        state, taken = None, []
        for _ in range(4):
            actions, state = policy.predict(observation_of(1), state)
            taken.append(actions[0, 0])
        assert sum(kind == "observation" for kind, *_ in log) == requests
    assert taken == ([0, 0, 0, 0] if answer is single else [0, 7, 0, 7])


def test_the_requests_of_a_batch_go_out_together():
    both = threading.Barrier(2, timeout=20)  # a server that waits for a full batch

    def answer(observation):
        both.wait()
        return single(observation)

    with client_of(answer) as (policy, _):
        actions, _ = policy.predict(observation_of(2))
    assert actions.shape == (2, 7)


def test_an_error_of_the_server_is_told_and_the_next_episode_goes_on():
    replies = iter([("error", {"error": "observation_failed: KeyError: 'x'"})])

    def answer(observation):
        return next(replies, None) or single(observation)

    with client_of(answer) as (policy, _):
        with pytest.raises(RemotePolicyError, match=r"127.0.0.1:\d+: .*KeyError: 'x'"):
            policy.predict(observation_of(1))
        assert policy.predict(observation_of(1))[0].shape == (1, 7)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (("action", {"action": 1}), "holds no 'actions' but action"),
        (("action", {"actions": np.zeros((1, 2, 7))}), "holds no 'actions'"),
        (("hello", {}), "is 'hello' to message 3, not 'action'"),
    ],
)
def test_an_answer_of_another_kind_is_refused(reply, text):
    with client_of(lambda _: reply) as (policy, _), pytest.raises(RemotePolicyError, match=text):
        policy.predict(observation_of(1))


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever():
    go_on = threading.Event()

    def answer(observation):
        go_on.wait(20)
        return single(observation)

    with client_of(answer, timeout_s=0.2) as (policy, _):
        with pytest.raises(RemotePolicyError, match=r"no answer within 0\.2 s"):
            policy.predict(observation_of(1))
        go_on.set()


@pytest.mark.parametrize(
    ("greeting", "text"),
    [
        ({"action_spec": {}}, "gripper: the server does not say; .* pass gripper='[+]1 closes' or"),
        (
            {"action_spec": {**LIBERO_ACTIONS, "gripper": {"format": "continuous_01"}}},
            "gripper: the server says 'continuous_01'; known are binary_close_positive",
        ),
        (
            {"action_spec": {**LIBERO_ACTIONS, "position": {"format": "absolute_xyz"}}},
            "position is 'absolute_xyz'",
        ),
        (
            {"observation_spec": {"state": {"format": "rot6d_interleaved_proprio_20d"}}},
            "state is 'rot6d_interleaved_proprio_20d', the dialect has 'eef vector fingers'",
        ),
    ],
)
def test_a_server_with_other_conventions_is_refused(greeting, text):
    with small_server(single, {**GREETING, **greeting}) as (address, _):
        with pytest.raises(ContractMismatch, match=text):
            VLAEvalPolicy(address)
        if not greeting.get("action_spec", True):
            policy = VLAEvalPolicy(address, gripper="+1 opens", rotation="axis-angle")
            assert policy.spec.gripper == "+1 opens"
            policy.close()


def test_another_protocol_and_no_server_at_all_are_named():
    with (
        small_server(single, {**GREETING, "protocol_version": 2}) as (address, _),
        pytest.raises(RemotePolicyError, match="it speaks protocol 2, here is 1"),
    ):
        VLAEvalPolicy(address)
    with pytest.raises(RemotePolicyError, match=r"no policy server answers at ws://127.0.0.1:1 "):
        make_vla_eval_policy(":1")


def test_the_names_of_the_dialect_can_be_changed():
    import dataclasses

    dialect = dataclasses.replace(
        VLA_EVAL, keys={"rgb_primary": "front", "instruction": "task_description"}, mirrored=False
    )
    with client_of(single, dialect=dialect) as (policy, log):
        observation = observation_of(1)
        policy.predict(observation)
        (payload,) = [payload for kind, payload, _ in log if kind == "observation"]
    assert set(payload) == {"images", "task_description"}
    np.testing.assert_array_equal(payload["images"]["front"], observation["rgb_primary"][0])


THEIR_SERVER = """
import sys
import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_AA
from vla_eval.specs import STATE_EEF_POS_AA_GRIP

class Echo(PredictModelServer):
    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}
    def get_observation_spec(self):
        return {"image": IMAGE_RGB, "language": LANGUAGE, "state": STATE_EEF_POS_AA_GRIP}
    def get_observation_params(self):
        return {"send_wrist_image": True, "send_state": True}
    def predict_batch(self, observations, contexts):
        def act(seen, context):
            if seen["task_description"] == "fail":
                raise ZeroDivisionError("in the model")
            first = [
                context.step,
                len(observations),
                seen["images"]["agentview"].mean(),
                seen["images"]["wrist"].shape[0],
                *seen["states"][[0, 6]],
                len(seen["task_description"]),
            ]
            return {"actions": np.array([first, first], np.float32)}
        return [act(*pair) for pair in zip(observations, contexts)]

size = None if sys.argv[2] == "None" else int(sys.argv[2])
serve(Echo(chunk_size=size, max_batch_size=2, max_wait_time=0.05), "127.0.0.1", int(sys.argv[1]))
"""


@pytest.mark.skipif(PYTHON is None, reason="VLA_GYM_VLA_EVAL_PYTHON is not set")
@pytest.mark.parametrize("chunk_size", [None, 2], ids=["chunks here", "chunks there"])
def test_their_own_server_gets_the_observations_and_is_understood(chunk_size, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "server.py"
    script.write_text(THEIR_SERVER)
    process = subprocess.Popen([PYTHON, str(script), str(port), str(chunk_size)])
    try:
        policy = make_vla_eval_policy(f"127.0.0.1:{port}", wait_s=60, image_size=8)
        assert policy.metadata["model_server"] == "Echo"
        assert policy.spec.gripper == "+1 closes" and policy.spec.proprio == "eef"
        observation = observation_of(2)
        actions, state = policy.predict(observation, None, np.ones(2, bool))
        for i in range(2):
            together = actions[i, 1]  # theirs begins with what has come, one or both
            assert together in (1, 2)
            mean = observation["rgb_primary"][i].mean()
            wanted = [0, together, mean, 8, 0.5, 0.04, len("task 0")]
            np.testing.assert_allclose(actions[i], wanted, rtol=1e-6)
        steps = [actions[0, 0]]
        for starts in ([False, False], [False, False], [True, True]):
            actions, state = policy.predict(observation, state, np.array(starts))
            steps.append(actions[0, 0])
        # A chunk holds the step at which it was predicted, counted in requests of the episode.
        assert steps == ([0, 0, 1, 0] if chunk_size is None else [0, 0, 2, 0])
        with pytest.raises(RemotePolicyError, match="ZeroDivisionError: in the model"):
            policy.predict({**observation_of(1), "instruction": ("fail",)})
        policy.close()
    finally:
        process.terminate()
        process.wait(20)
