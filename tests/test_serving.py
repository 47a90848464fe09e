"""Serving: others' programs get our policies in the openpi protocol, spoken by openpi's client."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import urllib.request

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vla_gym  # noqa: F401  registers the ids
from tests.support import needs
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.policy import PolicySpec, connect, make_policy
from vla_gym.rotations import vector_to_matrix
from vla_gym.serving import PolicyServer, Session, serve
from vla_gym.wire import DIALECTS, LIBERO, LIBERO_NATIVE, get_dialect, pack, unpack

pytestmark = needs("serve", "openpi")

REACH = "VLA/Toy-Reach-v0"


class Counting:
    """Answers with how often it was asked in this episode, and a spec to choose."""

    def __init__(self, **spec):
        self.spec = PolicySpec(**spec)
        self.seeds, self.seen, self.modes = [], [], []

    def set_random_seed(self, seed):
        self.seeds.append(seed)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.seen.append(observation)
        self.modes.append(deterministic)
        asked = 0 if state is None or episode_start[0] else state
        actions = np.zeros((1, 7), np.float32)
        actions[0, 0], actions[0, 6] = asked, 1
        return actions, asked + 1


@contextlib.contextmanager
def serving(policy, **keywords):
    """Serve in a thread of this process, which ends with it, and give the address."""
    ready, found = threading.Event(), []

    def on_ready(address):
        found.append(address)
        ready.set()

    threading.Thread(
        target=serve,
        args=(policy,),
        kwargs={"port": 0, "on_ready": on_ready, **keywords},
        daemon=True,
    ).start()
    assert ready.wait(20)
    yield found[0]


@contextlib.contextmanager
def command(*arguments):
    """Run `vla-gym serve` in a process of its own, and give the address that it names."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_gym.cli", "serve", *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        (address,) = re.findall(r"ws://\S+", line)
        yield address
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def connect_client(address):
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    return WebsocketClientPolicy(address)


def session_of(policy, **keywords):
    return Session(PolicyServer(policy, **keywords))


def answer_of(session, **message):
    return unpack(session.answer(pack(message)))["actions"]


def picture(size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def libero_message():
    return {
        "observation/image": picture(),
        "observation/wrist_image": picture(seed=1),
        "observation/state": np.zeros(8, np.float64),
        "prompt": "reach the ball",
    }


# The real client, the real command.


def test_the_client_of_openpi_gets_what_the_policy_does_and_the_metadata_first():
    env = gym.make(REACH, cameras=())
    direct = connect(make_policy("random"), env.unwrapped.spec_sheet)
    direct.set_random_seed(5)
    observation, _ = env.reset(seed=0)
    with command("random", "--env", "Toy-Reach") as address:
        client = connect_client(address)
        about = client.get_server_metadata()["vla_gym"]
        assert (about["policy"], about["dialect"]) == ("random", "vla_gym")
        assert about["env"]["id"] == REACH and about["spec"]["action_dim"] == 7
        for step in range(3):
            seed = {"vla_gym/seed": 5} if step == 0 else {}
            actions = client.infer({**observation, **seed})["actions"]
            wanted, _ = direct.predict({"proprio": observation["proprio"][None]})
            assert actions.dtype == np.float32
            np.testing.assert_array_equal(actions, wanted)
    env.close()


def test_the_client_of_openpi_gets_the_traceback_of_an_error_and_others_go_on():
    class Failing:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            if observation["instruction"] == ("fail",):
                raise ZeroDivisionError("in the policy")
            return np.zeros((1, 7), np.float32), state

    with serving(Failing()) as address:
        other, client = connect_client(address), connect_client(address)
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*ZeroDivisionError: in the policy"):
            client.infer({"instruction": "fail"})
        from websockets.exceptions import ConnectionClosed

        with pytest.raises(ConnectionClosed) as closed:
            client.infer({"instruction": "go on"})
        assert closed.value.rcvd.code == 1011
        assert other.infer({"instruction": "go on"})["actions"].shape == (1, 7)


def test_each_connection_has_a_state_of_its_own_and_reset_sends_nothing():
    with serving(Counting()) as address:
        one, two = connect_client(address), connect_client(address)
        seen = [client.infer({"instruction": "x"})["actions"][0, 0] for client in (one, one, two)]
        assert seen == [0, 1, 0]
        one.reset()
        assert one.infer({"instruction": "x"})["actions"][0, 0] == 2


def test_its_health_can_be_asked_over_http():
    with serving(Counting()) as address:
        url = address.replace("ws://", "http://") + "/healthz"
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")


def test_a_text_is_no_observation():
    import websockets.sync.client

    with serving(Counting()) as address, websockets.sync.client.connect(address) as connection:
        connection.recv()
        connection.send("hello")
        assert "must be a dict of the keys of an observation, not 'hello'" in connection.recv()


def test_a_port_that_is_taken_is_refused():
    with serving(Counting()) as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(InvalidOption, match=rf"cannot listen on 127.0.0.1:{port} "):
            serve(Counting(), port=port)


def test_the_command_refuses_what_it_cannot_serve():
    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "vla_gym.cli", "serve", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        return " ".join(done.stderr.split())

    assert "names 2 ids" in run("random", "--env", "Toy-*")
    assert "there is no dialect 'libro'" in run("zero", "--dialect", "libro")
    assert "name it with --env" in run("zero", "-k", "image_size=32")
    assert "MetaWorldExpert does not fit VLA/Toy-Reach-v0" in run(
        "metaworld-expert", "--env", "Toy-Reach", "-k", "state=True"
    )


# One session, without a wire.


def test_a_session_starts_an_episode_when_it_begins_and_when_it_is_told():
    policy = Counting()
    session = session_of(policy)
    told = [{}, {}, {"vla_gym/episode_start": True}, {"vla_gym/episode_start": False}]
    asked = [answer_of(session, instruction="x", **more)[0, 0] for more in told]
    assert asked == [0, 1, 0, 1]


def test_a_session_passes_on_the_seed_and_whether_to_sample():
    policy = Counting()
    session = session_of(policy)
    answer_of(session, instruction="x", **{"vla_gym/seed": 3, "vla_gym/deterministic": False})
    answer_of(session, instruction="x")
    assert policy.seeds == [3] and policy.modes == [False, True]
    assert set(policy.seen[0]) == {"instruction"}


def test_the_policy_sees_a_batch_of_one_in_the_words_of_the_contract():
    policy = Counting(cameras=("primary", "wrist"), image_size=8)
    message = libero_message()
    message["observation/state"][:] = [0.4, 0.1, 0.3, 0, 0, np.pi / 2, 0.04, -0.04]
    answer_of(session_of(policy, dialect="libero"), **message)
    (seen,) = policy.seen
    assert seen["instruction"] == ("reach the ball",)
    np.testing.assert_array_equal(seen["rgb_primary"][0], message["observation/image"][:, ::-1])
    np.testing.assert_allclose(seen["proprio"], [[0.4, 0.1, 0.3, 1, 0, 0, 0, 1, 0, 1]], atol=1e-7)


@pytest.mark.parametrize(("sign", "served"), [("+1 opens", -1), ("+1 closes", 1)])
def test_the_gripper_has_the_sign_of_the_clients(sign, served):
    session = session_of(Counting(gripper=sign), dialect="libero")
    assert answer_of(session, **libero_message())[0, 6] == served


def test_a_policy_served_for_an_env_speaks_the_convention_of_the_env():
    env = gym.make(REACH)
    server = PolicyServer(Counting(gripper="+1 closes"), sheet=env.unwrapped.spec_sheet)
    assert answer_of(Session(server), instruction="x")[0, 6] == -1
    about = server.metadata["vla_gym"]["spec"]
    assert (about["gripper"], about["action_dim"]) == ("+1 opens", 7)
    unpack(pack(server.metadata))  # all of it can be sent


@pytest.mark.parametrize(
    ("spec", "message", "text"),
    [
        ({"cameras": ("wrist",)}, {"rgb_primary": picture()}, "lacks 'rgb_wrist'"),
        ({"state": True}, {"proprio": np.zeros(10)}, "lacks 'state'"),
        ({"instruction": "text"}, {"rgb_primary": picture()}, "lacks 'instruction'"),
        ({}, {"rgb_primary": picture()[:4]}, r"uint8 \(4, 8, 3\), not uint8 \(n, n, 3\)"),
        ({"image_layout": "CHW"}, {"rgb_primary": picture()}, r"not uint8 \(3, n, n\)"),
        ({"image_size": 16}, {"rgb_primary": picture()}, r"uint8 \(8, 8, 3\), not uint8 \(16, "),
        ({}, {"rgb_primary": picture() / 255}, "float64 .8, 8, 3., not uint8"),
        ({}, {}, "it has none of its keys"),
    ],
)
def test_an_observation_that_the_policy_cannot_read_is_refused(spec, message, text):
    policy = Counting(**spec)
    with pytest.raises(ContractMismatch, match=text):
        answer_of(session_of(policy), **message)
    assert not policy.seen


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"rotation": "euler xyz"}, "rotation is 'euler xyz'"),
        ({"image_turn": "upside down"}, "image_turn is 'upside down'"),
        ({"scale": (1.0, 1.0)}, r"scale is \(1.0, 1.0\)"),
        ({"gripper": "1 opens, 0 closes"}, "gripper is '1 opens, 0 closes', not '[+]1 opens'"),
        ({"action_mode": "native"}, "action_mode is 'native'"),
        ({"action_dim": 14}, "actions have 14 entries"),
        ({"proprio": "joints"}, "proprio is 'joints', they send 'eef'"),
        ({"cameras": ("primary", "top")}, r"cameras \['top'\]"),
        ({"state": True}, "privileged state"),
    ],
)
def test_a_policy_that_the_clients_cannot_understand_is_refused(spec, text):
    with pytest.raises(ContractMismatch, match=text):
        PolicyServer(Counting(**spec), dialect="libero")
    PolicyServer(Counting(**spec))  # our own clients read its spec


# The wire.


def test_the_bytes_are_those_of_openpi():
    from openpi_client import msgpack_numpy

    message = {
        "image": picture(),
        "state": np.arange(3, dtype=np.float64)[::-1],
        "flag": np.bool_(True),
        "number": np.float32(0.5),
        "text": "é",
        "nested": {"list": [1, 2.5, None, np.array(["a", "bc"])]},
    }
    assert pack(message) == msgpack_numpy.packb(message)
    for read in (unpack, msgpack_numpy.unpackb):
        found = read(pack(message))
        np.testing.assert_array_equal(found["image"], message["image"])
        np.testing.assert_array_equal(found["state"], [2, 1, 0])
        assert found["number"].dtype == np.float32 and found["flag"] and found["text"] == "é"
    assert unpack(pack(message))["image"].flags.writeable


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.zeros(2, "i4,f4"), np.zeros(2, complex)]
)
def test_objects_and_records_do_not_cross_the_wire(value):
    with pytest.raises(ValueError, match="cannot be sent; numbers and text can"):
        pack({"x": value})
    import msgpack

    evil = {b"__ndarray__": True, b"data": b"12345678", b"dtype": value.dtype.str, b"shape": [1]}
    with pytest.raises(ValueError, match="is not read; numbers and text are"):
        unpack(msgpack.packb(evil))


@given(
    position=st.tuples(*[st.floats(-1, 1)] * 3),
    vector=st.tuples(*[st.floats(-1.7, 1.7)] * 3),
    opening=st.floats(0, 1),
)
def test_what_a_dialect_writes_it_reads(position, vector, opening):
    matrix = vector_to_matrix(np.array(vector))
    observation = {
        "rgb_primary": picture(4),
        "rgb_wrist": picture(4, 1),
        "proprio": np.array([*position, *matrix[:, 0], *matrix[:, 1], opening], np.float32),
        "instruction": "push",
    }
    for dialect in DIALECTS.values():
        found = dialect.read(dialect.write(observation))
        assert set(found) == set(observation) and found["instruction"] == "push"
        for key in ("rgb_primary", "rgb_wrist"):
            np.testing.assert_array_equal(found[key], observation[key])
        np.testing.assert_allclose(found["proprio"], observation["proprio"], atol=2e-6)


def test_the_state_of_libero_is_position_rotation_vector_and_fingers():
    turned = vector_to_matrix(np.array([0.0, np.pi / 2, 0.0]))
    fingers = turned @ vector_to_matrix(np.array([0.0, 0.0, -np.pi / 2]))  # against right_hand
    proprio = np.array([0.5, 0.1, 0.2, *fingers[:, 0], *fingers[:, 1], 0.5], np.float32)
    dialect = get_dialect("libero", {"rgb_primary": None, "rgb_wrist": None})
    written = dialect.write({"proprio": proprio, "instruction": "x"})
    assert set(written) == {"observation/state", "prompt"}
    np.testing.assert_allclose(
        written["observation/state"], [0.5, 0.1, 0.2, 0, np.pi / 2, 0, 0.02, -0.02], atol=1e-6
    )
    with pytest.raises(ContractMismatch, match=r"one arm, shape \(10,\); found shape \(15,\)"):
        dialect.write({"proprio": np.zeros(15), "instruction": "x"})
    with pytest.raises(ContractMismatch, match=r"shape \(8,\); found shape \(10,\)"):
        dialect.read({"observation/state": proprio})


@given(st.floats(0.01, 1), st.floats(-1, 1), st.floats(-1, 1), st.floats(0.01, 2 * np.pi - 0.01))
def test_the_rotation_of_libero_does_not_jump_where_a_hand_points_down(x, y, z, angle):
    vector = angle * np.array([x, y, z]) / np.linalg.norm([x, y, z])
    state = np.array([0.5, 0.1, 0.2, *vector, 0.04, -0.04])
    found = LIBERO.read({"observation/state": state})["proprio"]
    dialect = get_dialect("libero", {"rgb_primary": None, "rgb_wrist": None, "instruction": None})
    written = dialect.write({"proprio": found})["observation/state"]
    np.testing.assert_allclose(written, state, atol=1e-4)


def test_libero_itself_has_their_state_and_it_is_sent_as_it_is():
    proprio = np.arange(8, dtype=np.float32)
    message = LIBERO_NATIVE.write(
        {"rgb_primary": picture(), "rgb_wrist": picture(), "proprio": proprio, "instruction": "x"}
    )
    np.testing.assert_array_equal(message["observation/state"], proprio)
    assert (LIBERO_NATIVE.proprio, LIBERO.proprio) == ("native", "eef")


def test_a_key_that_is_not_there_is_named():
    with pytest.raises(ContractMismatch, match=r"sends rgb_wrist, .* lacks; it has rgb_primary"):
        LIBERO.write({"rgb_primary": picture(), "proprio": np.zeros(10), "instruction": "x"})
    with pytest.raises(UnknownName, match="there is no dialect 'drod'"):
        get_dialect("drod")
