"""A recorded episode played again: the same to the last bit, and otherwise said so."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from tests.evaluation import stand_ins
from tests.evaluation.test_evaluate import REACH
from tests.support import needs
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.evaluation.reenactment import Reenactment, find_difference, replay_record
from vla_gym.evaluation.store import Store, load_records, load_trace
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import Trace, run_episode

pytestmark = needs("eval")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    policies = {"random": "random", "expert": stand_ins.ReachBall}
    evaluate(policies, ["Toy-*"], episodes=2, seed=3, folder=folder, workers=2, video=False)
    return folder


def find(folder, policy, env_id=REACH, seed=3):
    (found,) = (
        record
        for record in load_records(folder)
        if (record.policy, record.id, record.seed) == (policy, env_id, seed)
    )
    return found


def rewrite(folder, out, record, change):
    """Copy one episode into another folder, with actions changed in place."""
    trace = load_trace(folder, record.key)
    actions = trace.actions.copy()
    change(actions)
    with Store(out) as store:
        store.append(record, Trace(actions, trace.digests))
    return record


def test_every_episode_comes_out_the_same(run):
    records = load_records(run)
    assert len(records) == 8
    assert [replay_record(run, record).step for record in records] == [None] * 8


def test_a_single_bit_of_one_action_is_noticed_in_its_step(run, tmp_path):
    record = find(run, "expert")
    actions = load_trace(run, record.key).actions
    inner = (np.abs(actions[:, :3]) > 0.01) & (np.abs(actions[:, :3]) < 0.99)  # not clipped
    step, entry = (int(x) for x in np.argwhere(inner)[-1])

    def flip(actions):
        actions[step, entry : entry + 1].view(np.uint32)[:] ^= 1

    rewrite(run, tmp_path, record, flip)
    assert replay_record(tmp_path, record).step == step + 1


def test_another_seed_is_noticed_at_the_reset(run, tmp_path):
    other = dataclasses.replace(find(run, "expert"), seed=4)
    with Store(tmp_path) as store:
        store.append(other, load_trace(run, find(run, "expert").key))
    assert replay_record(tmp_path, other).step == 0


def test_an_episode_that_goes_on_where_the_recorded_one_ended_differs(run, tmp_path):
    record = find(run, "expert")
    assert record.terminated

    def turn_back(actions):
        actions[-1] = -actions[-1]

    rewrite(run, tmp_path, record, turn_back)
    assert replay_record(tmp_path, record).step == record.length
    longer = {"terminate_on_success": False}  # all steps are the same, but its end is none
    assert replay_record(run, record, keywords=longer).step == record.length


def test_an_episode_that_ends_sooner_differs(run):
    expert, idle = find(run, "expert"), find(run, "random")
    assert expert.length < idle.length == 50
    trace = load_trace(run, idle.key)
    expert_actions = load_trace(run, expert.key).actions
    longer = Trace(np.resize(expert_actions, trace.actions.shape), trace.digests)
    env = gym.make(REACH, state=True, cameras=(), terminate_on_success=True)
    episode = run_episode(env, Reenactment(longer), expert.seed, trace=True)
    env.close()
    assert episode.length == expert.length
    assert find_difference(episode.trace, load_trace(run, expert.key)) is None
    cut = Trace(trace.actions, trace.digests[: expert.length])
    assert find_difference(cut, trace) == find_difference(trace, cut) == expert.length


def test_actions_that_are_used_up_end_in_an_error_and_not_in_silence(run):
    record = find(run, "random")
    trace = load_trace(run, record.key)
    env = gym.make(REACH, cameras=())
    with pytest.raises(InvalidOption, match="ended after 7 steps, this one goes on"):
        run_episode(env, Reenactment(Trace(trace.actions[:7], trace.digests[:8])), record.seed)
    env.close()


def test_what_crashed_cannot_be_replayed(tmp_path):
    policies = {"p": stand_ins.RaisesOnSeed2}
    evaluate(policies, [REACH], episodes=3, folder=tmp_path, retries=0, video=False)
    crashed = find(tmp_path, "p", seed=2)
    with pytest.raises(InvalidOption, match=r"seed 2 \(crashed\): only an episode that was played"):
        replay_record(tmp_path, crashed)
    assert replay_record(tmp_path, find(tmp_path, "p", seed=1)).step is None


def test_draws_of_a_shared_policy_are_replayed_from_its_actions(tmp_path):
    options = {"episodes": 3, "workers": 2, "batch": 2, "video": False}
    found = evaluate(["random"], [REACH], folder=tmp_path, **options)
    assert [replay_record(tmp_path, record).step for record in found.records] == [None] * 3


def test_perturbed_episodes_are_replayed_with_their_perturbation(tmp_path):
    wanted = ["action-noise", "latency", "instruction"]
    policies = {"expert": stand_ins.ReachBall}
    options = {"episodes": 1, "seed": 3, "video": False, "perturbations": wanted}
    found = evaluate(policies, [REACH], folder=tmp_path, **options)
    assert {r.perturbation.partition("=")[0] for r in found.records} == {"", *wanted}
    assert [replay_record(tmp_path, record).step for record in found.records] == [None] * 4
    noisy = next(r for r in found.records if r.perturbation.startswith("action-noise"))
    with Store(tmp_path / "plain") as store:  # without it, the same actions do something else
        store.append(dataclasses.replace(noisy, perturbation=""), load_trace(tmp_path, noisy.key))
    (plain,) = load_records(tmp_path / "plain")
    assert 1 <= replay_record(tmp_path / "plain", plain).step <= 5  # clipping hides it at first


def read_video(path):
    import imageio_ffmpeg

    frames = imageio_ffmpeg.read_frames(str(path))
    facts = next(frames)
    width, height = facts["size"]
    return facts, [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in frames]


def test_a_video_has_all_steps_in_the_size_asked_for_and_stands_upright(run, tmp_path):
    record = find(run, "expert")
    path = tmp_path / "deep" / "video.mp4"
    assert replay_record(run, record, video=path, size=200).step is None
    facts, frames = read_video(path)
    assert frames[0].shape == (200, 200, 3)
    assert abs(facts["fps"] - record.protocol["control_hz"]) < 0.01
    held = round(record.protocol["control_hz"])  # a second of the last picture
    assert len(frames) == record.length + 1 + held
    env = gym.make(REACH, render_mode="rgb_array", render_size=200)
    env.reset(seed=record.seed)
    first = env.render().astype(float)
    env.close()
    error = np.abs(frames[0] - first).mean()
    assert error < 5 and error < np.abs(frames[0] - first[::-1]).mean() / 2
    assert error < np.abs(frames[0] - first[:, ::-1]).mean() / 2
    assert np.abs(frames[0].astype(float) - frames[record.length]).mean() > 0.1  # it moves


def test_a_size_that_cannot_be_encoded_is_refused(run, tmp_path):
    with pytest.raises(InvalidOption, match="201 pixels cannot be encoded; take an even number"):
        replay_record(run, find(run, "random"), video=tmp_path / "v.mp4", size=201)


# --- equal digests mean equal states, on each suite


class HidesState(gym.Wrapper):
    """Keeps what the simulator's state was, and shows all but it."""

    def __init__(self, env, hide):
        super().__init__(env)
        self.states, self.pictures, self._hide = [], [], hide

    def reset(self, **keywords):
        observation, info = self.env.reset(**keywords)
        return self._see(observation), info

    def step(self, action):
        observation, *rest = self.env.step(action)
        return self._see(observation), *rest

    def _see(self, observation):
        self.states.append(observation["state"].tobytes())
        self.pictures.append(b"".join(v.tobytes() for k, v in observation.items() if "rgb" in k))
        return {k: v for k, v in observation.items() if k != "state" or not self._hide}


SUITES = [
    pytest.param("MetaWorld-DrawerOpen", "metaworld-expert", {}, 80, marks=needs("metaworld")),
    pytest.param("Robosuite-Lift", "robosuite-lift-expert", {}, 60, marks=needs("robosuite")),
    pytest.param("RLBench-ReachTarget", "rlbench-expert", {}, 60, marks=needs("rlbench-twin")),
    pytest.param("CALVIN-OpenDrawer", "calvin-expert", {}, 80, marks=needs("calvin-twin")),
    pytest.param("CALVIN-Chain", "calvin-expert", {"chain": 1}, 300, marks=needs("calvin-twin")),
]
TWINS = {"RLBench": {"simulator": "rlbench-twin"}, "CALVIN": {"simulator": "calvin-twin"}}


def play_twice(env_id, name, options, steps, hide):
    """Play an episode of a policy, then its actions in another env; return both."""
    keywords = {"image_size": 24, "render_quality": "fast", **TWINS.get(env_id.split("-")[0], {})}
    found, trace = [], None
    for _ in range(2):
        env = gym.make(f"VLA/{env_id}-v0", max_episode_steps=steps, state=True, **keywords)
        actor = connect(make_policy(name), env.unwrapped.spec_sheet)
        seen = HidesState(env, hide)
        actor = actor if trace is None else Reenactment(trace)
        episode = run_episode(seen, actor, 7, options=options, trace=True)
        trace = trace or episode.trace
        found.append((episode, seen))
        env.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "expert", "options", "steps"), SUITES)
@pytest.mark.parametrize("who", ["random", "expert"])
def test_equal_digests_are_equal_states_and_pictures(env_id, expert, options, steps, who):
    name, hide = ("random", True) if who == "random" else (expert, False)
    (one, first), (other, second) = play_twice(env_id, name, options, steps, hide)
    assert find_difference(one.trace, other.trace) is None
    assert first.states == second.states and len(first.states) == one.length + 1
    assert first.pictures == second.pictures and len(set(first.pictures)) > 5
    assert len(set(first.states)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [suite.values[0] for suite in SUITES])
@needs("metaworld", "robosuite", "rlbench-twin", "calvin-twin")
def test_another_start_is_noticed_where_the_state_is_not_shown(env_id):
    """With the same actions, a block that lies elsewhere shows in no number of the hand's."""
    keywords = {"cameras": (), **TWINS.get(env_id.split("-")[0], {})}
    env = gym.make(f"VLA/{env_id}-v0", max_episode_steps=5, **keywords)
    actor = connect(make_policy("random"), env.unwrapped.spec_sheet)
    trace = run_episode(env, actor, 7, trace=True).trace
    again = [run_episode(env, Reenactment(trace), seed, trace=True).trace for seed in (7, 8, 9)]
    env.close()
    assert find_difference(trace, again[0]) is None
    assert None not in [find_difference(trace, other) for other in again[1:]]


@pytest.mark.slow
@needs("metaworld", "robosuite", "rlbench-twin", "calvin-twin")
def test_evaluated_episodes_of_all_suites_come_out_the_same(tmp_path):
    suites = [suite.values for suite in SUITES]
    policies = ["random", *dict.fromkeys(expert for _, expert, _, _ in suites)]
    options = {"episodes": 1, "seed": 2, "max_steps": 150, "workers": 2, "video": False}
    found = evaluate(
        policies, [suite[0] for suite in suites], folder=tmp_path, skip_mismatches=True, **options
    )
    assert len(found.records) == 2 * len(SUITES) and all(r.counts for r in found.records)
    for record in found.records:
        assert replay_record(tmp_path, record).step is None, record


@pytest.mark.slow
@needs("metaworld")
def test_a_moved_camera_is_replayed_and_filmed(tmp_path):
    options = {"episodes": 1, "max_steps": 6, "perturbations": ["camera"], "video": False}
    evaluate(["random"], ["MetaWorld-DrawerOpen"], folder=tmp_path, **options)
    videos = []
    for record in load_records(tmp_path):
        path = tmp_path / f"{record.perturbation}.mp4"
        assert replay_record(tmp_path, record, video=path, size=200).step is None
        videos.append(read_video(path)[1])
    plain, moved = videos
    assert len(plain) == len(moved) == 7 + 80
    assert np.abs(plain[0].astype(float) - moved[0]).mean() > 3
