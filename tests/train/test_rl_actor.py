"""The actor: its mode is what the policy does, and only what is meant to be trained is trained."""

from __future__ import annotations

import numpy as np
import pytest

import vla_gym  # noqa: F401  registers the ids
from tests.support import needs
from tests.train.rl_support import PIXELS, REACH, STATE, make_vla
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.train.chunk_env import make_chunk_envs

pytestmark = needs("vla")

WAYS = ("all", "frozen-vision", "head", "lora")
MODELS = [
    pytest.param(STATE, id="state"),
    pytest.param({**PIXELS, "history": 2, "temporal": "attention"}, id="pixels"),
    pytest.param({**STATE, "head": "flow"}, id="flow"),
]


def make_actor(policy, train="frozen-vision", **keywords):
    from vla_gym.train.actor import Actor

    return Actor(policy, **{"train": train, "execute": 2, "std": 0.1, "rank": 2, **keywords})


def make_envs(policy, execute=2, count=3, **keywords):
    return make_chunk_envs(
        [REACH],
        count,
        cameras=policy.spec.cameras,
        image_size=32,
        history=policy.history,
        execute=execute,
        workers=1,
        state=True,
        **keywords,
    )


def observe(policy, count=3, seed=0):
    envs = make_envs(policy, count=count)
    observation, _ = envs.reset(seed=seed)
    envs.close()
    return observation


def nudge(actor, seed=0):
    """Change all that is trained a little."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in actor.trained:
            parameter += 0.05 * torch.randn_like(parameter)


def mode_of(actor, observation):
    import torch

    with torch.no_grad():
        return actor.distribution(actor.feature(actor.see(observation))).mean.numpy()


@pytest.mark.parametrize("train", WAYS)
@pytest.mark.parametrize("config", MODELS)
def test_the_mode_is_what_the_policy_does(config, train, tmp_path):
    """Also after training, and from the saved checkpoint: chunk by chunk and step by step."""
    import gymnasium as gym

    from vla_gym import make_policy
    from vla_gym.rollout import run_episode

    policy = make_vla(**config)
    actor = make_actor(policy, train)
    nudge(actor)
    actor.save(tmp_path / "saved")
    saved = make_policy(f"vla:{tmp_path / 'saved'}", execute=2)

    class Watched:
        def __init__(self):
            self.actions = []

        def predict(self, *args):
            actions, state = saved.predict(*args)
            self.actions.append(actions[0])
            return actions, state

    watched = Watched()
    sizes = {"image_size": 32, "cameras": policy.spec.cameras}
    env = gym.make(REACH, state=True, max_episode_steps=6, **sizes)
    run_episode(env, watched, seed=7)
    env.close()

    envs = make_envs(policy, count=1, max_episode_steps=6)
    observation, _ = envs.reset(seed=7)
    for k in range(3):
        chunk = mode_of(actor, observation).clip(-1, 1)
        expected = np.stack(watched.actions[2 * k : 2 * k + 2])
        assert np.allclose(chunk.reshape(2, 7), expected, atol=1e-5)
        observation = envs.step(chunk)[0]
    envs.close()


@pytest.mark.parametrize("train", WAYS)
def test_only_what_is_meant_to_be_trained_has_a_gradient(train):
    import torch

    policy = make_vla(**PIXELS)
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    actor = make_actor(policy, train)
    seen = actor.see(observe(policy))
    assert not any(value.requires_grad for value in seen.values())
    distribution = actor.distribution(actor.feature(seen))
    distribution.log_prob(torch.zeros(3, 14)).sum().backward()
    moved = {name for name, p in actor.named_parameters() if p.grad is not None}
    assert moved == {name for name, p in actor.named_parameters() if p.requires_grad}
    assert "log_std" in moved
    parts = {name.removeprefix("model.").split(".")[0] for name in moved - {"log_std"}}
    assert ("vision" in parts) == (train == "all")
    assert "language" not in parts
    assert (parts == {"head"}) == (train == "head")
    if train == "lora":
        assert all(name.endswith((".a", ".b")) for name in moved - {"log_std"})
        # What is added to the projections of attention acts, too: torch reads their weights.
        assert any("in_proj_weight" in name for name in moved)
        assert any("out_proj" in name for name in moved)
    torch.optim.SGD(actor.trained, 0.1).step()
    now = actor.model.state_dict()
    frozen = [name for name in before if name.startswith("vision.") and train != "all"]
    assert all(torch.equal(now[name], before[name]) for name in frozen)


def test_low_rank_changes_act_the_same_with_and_without_gradients():
    """Without them torch takes a fused path through its transformer."""
    import torch

    policy = make_vla(**PIXELS)
    observation = observe(policy)
    first = mode_of(make_actor(make_vla(**PIXELS)), observation)
    actor = make_actor(policy, "lora")
    assert np.allclose(mode_of(actor, observation), first, atol=1e-5)  # B is zero at first
    nudge(actor)
    without = mode_of(actor, observation)
    mean = actor.distribution(actor.feature(actor.see(observation))).mean
    assert np.allclose(mean.detach().numpy(), without, atol=1e-5)
    assert not np.allclose(without, first, atol=1e-3)
    plain = torch.nn.functional.mse_loss(torch.from_numpy(without), torch.from_numpy(first))
    assert float(plain) > 0


def test_the_divergence_is_that_of_two_normals():
    """By hand: of means apart by d and deviations s and s0, for each of the n entries
    log(s0/s) + (s^2 + d^2) / (2 s0^2) - 1/2."""
    import torch

    policy = make_vla()
    actor = make_actor(policy, std=0.2)
    seen = actor.see(observe(policy))
    distribution = actor.distribution(actor.feature(seen))
    assert torch.allclose(actor.divergence(distribution, seen), torch.zeros(3), atol=1e-5)
    with torch.no_grad():
        actor.log_std.fill_(np.log(0.1))
        policy.model.head.layers[-1].bias += 0.3  # nothing is normalised: all means move by 0.3
    distribution = actor.distribution(actor.feature(seen))
    expected = 14 * (np.log(2) + (0.1**2 + 0.3**2) / (2 * 0.2**2) - 0.5)
    assert np.allclose(actor.divergence(distribution, seen).detach(), expected, rtol=1e-4)


def test_frozen_features_are_computed_once():
    policy = make_vla(**PIXELS)
    calls = []
    policy.model.vision["shared"].register_forward_hook(lambda *_: calls.append(1))
    actor = make_actor(policy, "frozen-vision", reference=False)
    seen = actor.see(observe(policy))
    count = len(calls)
    assert count > 0
    actor.feature(seen)
    assert len(calls) == count


def test_wrong_settings_are_named():
    with pytest.raises(UnknownName, match="frozen-vision"):
        make_actor(make_vla(), "vision")
    with pytest.raises(InvalidOption, match=r"execute=4 must be in \[1, 3\]"):
        make_actor(make_vla(), execute=4)


def test_what_it_saves_takes_as_many_actions_as_it_was_trained_with(tmp_path):
    from vla_gym import make_policy

    for train in ("all", "lora"):
        make_actor(make_vla(), train, execute=2).save(tmp_path / train)
        assert make_policy(str(tmp_path / train)).model.config.execute == 2


@pytest.mark.parametrize("train", WAYS)
def test_what_it_adds_is_where_the_model_is(train):
    """The device meta stands for any device that is not the CPU."""
    policy = make_vla()
    policy.model.to("meta")
    actor = make_actor(policy, train).to("meta")
    assert {tensor.device.type for tensor in actor.state_dict().values()} == {"meta"}
