"""The report: one page, nothing from outside, nothing claimed without data."""

from __future__ import annotations

import csv
import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.evaluation import stand_ins
from tests.support import needs
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.evaluation.records import Record, RecordFile
from vla_gym.evaluation.report import DASH, write_report
from vla_gym.evaluation.video import write_video

pytestmark = needs("eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation")
    policies = {"expert": stand_ins.ReachBall, "<b>odd</b>": stand_ins.RaisesOnSeed2}
    policies["elsewhere"] = stand_ins.OtherSuite
    evaluate(policies, ["Toy-*"], episodes=3, folder=path, skip_mismatches=True)
    write_report([path])
    return path


class Addresses(HTMLParser):
    """Collects whatever a browser would load, and the tags that it opens."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "data", "action", "poster", "srcset")
        self.found += [value for name, value in attrs if name in names]


def test_the_page_refers_to_nothing_outside_itself(folder):
    html = (folder / "report.html").read_text()
    page = Addresses()
    page.feed(html)
    assert all(address.startswith(("data:video/mp4;base64,", "#")) for address in page.found)
    assert "video" in page.tags and "svg" in page.tags
    assert "link" not in page.tags and "iframe" not in page.tags
    without_data = re.sub(r"base64,[\w+/=]*", "", html)
    assert not re.search(r"https?://|@import|url\((?!#)", without_data)


def test_the_page_is_honest(folder):
    html = (folder / "report.html").read_text()
    assert "after any step of the episode" in html
    assert "Wilson" in html and "episodes are paired" in html
    assert "2 crashed episodes" in html and "the cat walked over the keyboard" in html
    assert "0/2" in html  # the third of the odd one's episodes crashed and has no outcome
    assert "&lt;b&gt;odd&lt;/b&gt;" in html and "<b>odd" not in html
    assert html.count("simulator: toy") == 3  # two tasks and all episodes
    assert "prefers-color-scheme: dark" in html


def test_what_was_not_evaluated_is_a_dash_or_an_empty_field(tmp_path):
    protocol = {
        **{"suite": "Toy", "task": "Reach", "simulator": "toy", "robot": "point", "horizon": 9},
        **{"versions": {}, "control_hz": 10.0, "success_rule": "any", "action_mode": "ee_delta"},
        **{"cameras": [], "image_size": 128, "proprio": "eef", "state": False, "reward": "r"},
        **{"instruction": "text", "terminate_on_success": True, "render_quality": "exact"},
        **{"keywords": {}, "paraphrase": False, "policy_source": "p", "deterministic": True},
    }
    done = {"episode_return": 1.0, "length": 3, "env_seconds": 1.0, "policy_seconds": 1.0}
    record = Record("p", "VLA/Toy-A-v0", 0, 0, "success", protocol, **done)
    with RecordFile(tmp_path) as file:
        file.append(record)
        file.append(dataclasses.replace(record, policy="q", id="VLA/Toy-B-v0", outcome="crashed"))
    write_report([tmp_path])
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert rows[0]["success_rate"] == "1" and rows[0]["t95_low"] == ""
    assert rows[0]["simulator"] == "toy" and "sr_1" not in rows[0]
    assert rows[1]["crashed"] == "1" and rows[1]["success_rate"] == ""
    markdown = (tmp_path / "report.md").read_text()
    assert f"| Toy-A | toy | 100 % [21{DASH}100 %], 1/1 | {DASH} |" in markdown
    assert f"| Toy-B | toy | {DASH} | {DASH} |" in markdown


def test_tasks_stand_in_the_order_in_which_they_were_asked_for(tmp_path):
    ids = ["Toy-Lift", "Toy-Reach"]  # Reach ends first: half the horizon
    evaluate({"expert": stand_ins.ReachBall}, ids, episodes=1, folder=tmp_path, workers=2)
    markdown = write_report([tmp_path]).with_suffix(".md").read_text()
    assert markdown.index("| Toy-Lift") < markdown.index("| Toy-Reach")


def test_the_same_records_give_the_same_page(folder):
    before = (folder / "report.html").read_bytes()
    assert write_report([folder]).read_bytes() == before


def test_two_folders_make_one_page_and_keep_their_policies_apart(folder, tmp_path):
    evaluate({"expert": stand_ins.ReachBall}, ["Toy-Reach"], episodes=1, folder=tmp_path / "new")
    markdown = write_report([folder, tmp_path / "new"], tmp_path).with_suffix(".md").read_text()
    assert "| expert |" in markdown and "| expert (new) |" in markdown


def test_an_empty_folder_is_an_error_that_says_what_writes_one(tmp_path):
    with pytest.raises(InvalidOption, match="vla-gym eval --out DIR"):
        write_report([tmp_path])


def test_a_video_decodes_back_upright_and_in_colour(tmp_path):
    import imageio_ffmpeg

    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32] = (200, 40, 40)
    frame[32:] = (40, 40, 200)
    write_video(tmp_path / "a.mp4", [frame] * 3, fps=10)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    facts = next(reader)
    frames = [np.frombuffer(data, np.uint8).reshape(64, 96, 3) for data in reader]
    assert facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p")
    assert len(frames) == 3 + 10  # the last one stays for a second
    assert np.abs(frames[0][8, 48].astype(int) - (200, 40, 40)).max() < 12
    assert np.abs(frames[0][56, 48].astype(int) - (40, 40, 200)).max() < 12


def test_an_episodes_video_begins_with_what_the_env_shows_at_reset(folder):
    import gymnasium as gym
    import imageio_ffmpeg

    import vla_gym  # noqa: F401  registers the ids

    env = gym.make("VLA/Toy-Reach-v0", cameras=(), render_mode="rgb_array")
    env.reset(seed=0)
    shown = env.render().astype(int)
    reader = imageio_ffmpeg.read_frames(str(folder / "videos" / "expert--Toy-Reach-v0.mp4"))
    next(reader)
    first = np.frombuffer(next(reader), np.uint8).reshape(256, 256, 3).astype(int)
    assert np.abs(first - shown).mean() < 5
    assert np.abs(first[::-1] - shown).mean() > 10
