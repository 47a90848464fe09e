"""The report: one page, nothing from outside, nothing claimed without data."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.evaluation import stand_ins
from tests.support import needs
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.evaluation.protocols import get_protocol
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.report import DASH, write_report
from vla_gym.evaluation.report.gallery import make_gallery
from vla_gym.evaluation.report.gather import gather
from vla_gym.evaluation.report.tables import make_board
from vla_gym.evaluation.store import Store, load_records
from vla_gym.evaluation.video import write_video

pytestmark = needs("eval")

PROTOCOL = {
    **{"protocol": "", "suite": "Toy", "task": "Reach", "simulator": "toy", "robot": "point"},
    **{
        "versions": {"vla-gym": "1"},
        "horizon": 9,
        "control_hz": 10.0,
        "success_rule": "at any step",
    },
    **{"action_mode": "ee_delta", "cameras": [], "image_size": 128, "proprio": "eef"},
    **{"state": False, "instruction": "text", "reward": "r", "terminate_on_success": True},
    **{"render_quality": "exact", "keywords": {}, "paraphrase": False, "perturbation": ""},
    **{"policy_source": "p", "deterministic": True, "batch": 1},
}


def make_record(policy="p", env_id="VLA/Toy-A-v0", seed=0, outcome="success", **fields):
    """Return a record as the evaluator writes it; `protocol` changes entries of its protocol."""
    perturbation = fields.get("perturbation", "")
    task = env_id.removeprefix("VLA/Toy-").removesuffix("-v0")
    protocol = PROTOCOL | {"task": task, "perturbation": perturbation} | fields.pop("protocol", {})
    done = {"episode_return": 1.0, "length": 3, "env_seconds": 1.0, "policy_seconds": 1.0}
    fields = (done if outcome in ("success", "failure") else {}) | fields
    return Record(policy, env_id, seed, seed, outcome, protocol, date="2026-01-02", **fields)


def play(policy, solved, **fields):
    """Return an episode of each seed; `solved` has a 1 for a success, a 0 for a failure."""
    outcomes = ["success" if good else "failure" for good in solved]
    return [make_record(policy, seed=s, outcome=o, **fields) for s, o in enumerate(outcomes)]


def write_run(folder, records):
    with Store(folder) as store:
        store.add_run(policies={r.policy: "p" for r in records}, ids=[], mismatches=[])
        for record in records:
            store.append(record)
    return folder


def read_csv(path):
    return list(csv.DictReader(path.open()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A real evaluation with a report: three policies, one of which crashes on seed 2."""
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
    inside = ("data:video/mp4;base64,", "data:image/jpeg;base64,", "#")
    assert all(address.startswith(inside) for address in page.found)
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
    assert html.count("<span>toy</span>") == 2  # each row of the table names its simulator
    assert "Simulator: toy." in html  # and so does what is said of both
    assert "prefers-color-scheme: dark" in html


def test_what_was_not_evaluated_is_a_dash_or_an_empty_field(tmp_path):
    crashed = make_record("q", "VLA/Toy-B-v0", outcome="crashed", error="no")
    write_report([write_run(tmp_path, [make_record(), crashed])])
    rows = read_csv(tmp_path / "report.csv")
    assert rows[0]["success_rate"] == "1" and rows[0]["t95_low"] == ""
    assert rows[0]["simulator"] == "toy" and "sr_1" not in rows[0]
    assert rows[1]["crashed"] == "1" and rows[1]["success_rate"] == ""
    markdown = (tmp_path / "report.md").read_text()
    assert f"| Toy-A | toy | 100 % [21{DASH}100 %], 1/1 | {DASH} |" in markdown
    assert f"| Toy-B | toy | {DASH} | {DASH} |" in markdown


def test_crashes_and_timeouts_are_counted_and_named_apart(tmp_path):
    records = [make_record(seed=s, outcome="timeout", error="slow") for s in (1, 2, 3)]
    records += [make_record(seed=4, outcome="crashed", error="cat", attempts=3), make_record()]
    html = write_report([write_run(tmp_path, records)]).read_text()
    assert "1 crashed and 3 timed-out episodes." in html
    assert "1 crashed</span>" in html and "3 timed out</span>" in html
    markdown = (tmp_path / "report.md").read_text()
    assert "Timed out: p on Toy-A, seeds 1 to 3: slow" in markdown
    assert "Crashed: p on Toy-A, seed 4: cat" in markdown
    assert "1 episode, 5 for each policy and task; a further 1 crashed and 3 timed out" in markdown
    (row,) = read_csv(tmp_path / "report.csv")
    assert (row["n"], row["crashed"], row["timeouts"]) == ("1", "1", "3")


def test_the_table_of_episodes_has_every_episode(folder):
    rows = read_csv(folder / "episodes.csv")
    records = load_records(folder)
    assert [(r["policy"], r["id"], int(r["seed"]), r["outcome"]) for r in rows] == [
        (r.policy, r.id, r.seed, r.outcome) for r in records
    ]
    assert {row["video"] for row in rows if row["episode"] == "0"} == {
        record.video for record in records if record.episode == 0
    }


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


def test_shards_of_one_evaluation_are_pooled(tmp_path):
    records = play("p", [1, 0, 1, 1])
    shards = [write_run(tmp_path / str(k), records[k::2]) for k in range(2)]
    write_report(shards, tmp_path / "out")
    (row,) = read_csv(tmp_path / "out" / "report.csv")
    assert (row["policy"], row["n"], row["successes"]) == ("p", "4", "3")


def test_other_rules_are_another_policy_of_the_report(tmp_path):
    one = write_run(tmp_path / "one", play("p", [1, 0]))
    other = [make_record("p", seed=7, protocol={"horizon": 99})]
    found = gather([one, write_run(tmp_path / "other", other)])
    assert found.policies == ["p", "p (other)"]


def test_an_empty_folder_is_an_error_that_says_what_writes_one(tmp_path):
    with pytest.raises(InvalidOption, match="vla-gym eval --out DIR"):
        write_report([tmp_path])


def test_a_protocol_gives_the_scores_of_its_groups(tmp_path):
    protocol = get_protocol("metaworld-mt50")
    named = {"protocol": protocol.name, "suite": "MetaWorld"}
    easy, hard = protocol.groups["easy"], protocol.groups["hard"]
    records = [
        record
        for ids, solved in ((easy, [1, 1]), (hard, [0, 1]))
        for env_id in ids
        for record in play("p", solved, env_id=env_id, protocol=named)
    ]
    html = write_report([write_run(tmp_path, records)]).read_text()
    assert f"Protocol: {protocol.name}" in html and protocol.title in html
    board = make_board(gather([tmp_path]), protocol)
    scores = board.rows["p"]
    assert scores["easy"].value == 1 and scores["hard"].value == 0.5
    assert scores["very hard"].value is None
    mean = (len(easy) + 0.5 * len(hard)) / (len(easy) + len(hard))
    assert scores["mean over tasks"].value == pytest.approx(mean)
    assert f"{len(easy) + len(hard)} of 50 tasks" in html  # not the published score


def test_a_protocol_that_nobody_knows_here_is_named_all_the_same(tmp_path):
    record = make_record(protocol={"protocol": "elsewhere-7"})
    assert "Protocol: elsewhere-7" in write_report([write_run(tmp_path, [record])]).read_text()


def test_two_policies_are_compared_on_the_same_episodes(tmp_path):
    records = play("good", [1] * 12) + play("bad", [1] * 4 + [0] * 8)
    html = write_report([write_run(tmp_path, records)]).read_text()
    assert "<strong>good is better</strong>" in html
    assert "good solves 66.7 points more than bad" in (tmp_path / "report.md").read_text()


def test_what_is_not_settled_says_how_many_episodes_would_settle_it(tmp_path):
    records = play("a", [1, 1, 0, 1, 1, 0]) + play("b", [1, 0, 1, 1, 0, 0])
    html = write_report([write_run(tmp_path, records)]).read_text()
    assert "<strong>not settled</strong>" in html
    assert re.search(r"some \d+ episodes would settle such a difference; 6 played", html)


def test_policies_that_faced_different_tasks_are_not_compared(tmp_path):
    records = play("a", [1]) + play("b", [1], env_id="VLA/Toy-B-v0")
    assert "none of the same id" in write_report([write_run(tmp_path, records)]).read_text()


def test_perturbed_episodes_have_a_table_of_their_own(tmp_path):
    records = play("p", [1, 1, 1, 0]) + play("p", [1, 0, 0, 0], perturbation="camera")
    html = write_report([write_run(tmp_path, records)]).read_text()
    markdown = (tmp_path / "report.md").read_text()
    assert f"| Toy-A | toy | 75 % [30{DASH}95 %], 3/4 |" in markdown  # unperturbed alone
    # 2 of 4 pairs are lost, none won: -50 points
    row = r"\| p \| 75 % .*, n 4 \| 25 % .*, n 4, \u221250 \[.* to .*\] on 4 \|"
    assert re.search(row, markdown)
    assert "change <strong>\u221250</strong>" in html
    rows = read_csv(tmp_path / "report.csv")
    assert [(r["perturbation"], r["successes"]) for r in rows] == [("", "3"), ("camera", "1")]


def test_the_drop_is_that_of_the_same_seeds(tmp_path):
    plain = play("p", [0, 0, 1, 1])
    perturbed = [make_record("p", seed=s, perturbation="camera") for s in (2, 3)]
    write_report([write_run(tmp_path, plain + perturbed)])
    assert re.search(r"100 % .*, n 2, 0 \[.*\] on 2", (tmp_path / "report.md").read_text())


def test_a_training_run_shows_its_learning_curve(tmp_path):
    run = write_run(tmp_path / "run", [make_record()])
    (run / "config.json").write_text(json.dumps({"data": ["d"], "eval_episodes": 10}))
    lines = [
        {"step": 100, "loss": 0.5},
        {"step": 100, "success": 0.25, "success/A": 0.2, "success/B": 0.3},
        {"step": 200, "success": 0.75, "n": 40},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
    html = write_report([run]).read_text()
    assert "Learning curves" in html
    assert (
        f"| run | updates | 75 % [60{DASH}86 %], n 40, step 200 |"
        in (run / "report.md").read_text()
    )
    with pytest.raises(InvalidOption, match=r"is no training run: it has no config\.json"):
        write_report([run], curves=[tmp_path])


def test_videos_of_failures_stand_by_policy_and_task(tmp_path):
    (tmp_path / "videos").mkdir()
    records = []
    for record in play("p", [1, 0, 0, 1]):
        if record.seed < 3:
            write_video(tmp_path / f"videos/{record.seed}.mp4", make_frames(), fps=10)
            record = dataclasses.replace(record, video=f"videos/{record.seed}.mp4")
        records.append(dataclasses.replace(record, instruction="reach"))
    html = write_report([write_run(tmp_path, records)]).read_text()
    gallery = make_gallery(gather([tmp_path]))
    assert [film.record.seed for reel in gallery.first for film in reel.films] == [0]
    (reel,) = gallery.further
    assert [film.record.seed for film in reel.films] == [1, 2]
    assert (reel.policy, reel.name, reel.instruction) == ("p", "Toy-A", "reach")
    assert "seed 1, 3 steps" in html and html.count("<video") == 3
    assert all(film.poster.startswith("data:image/jpeg") for film in reel.films)


def test_a_page_takes_no_more_videos_than_a_browser_bears(tmp_path):
    (tmp_path / "videos").mkdir()
    records = []
    for record in play("p", [0, 0, 0, 0]):
        write_video(tmp_path / f"videos/{record.seed}.mp4", make_frames(), fps=10)
        records.append(dataclasses.replace(record, video=f"videos/{record.seed}.mp4"))
    results = gather([write_run(tmp_path, records)])
    size = len(make_gallery(results).first[0].films[0].video)
    gallery = make_gallery(results, most=int(2.5 * size))
    assert gallery.left_out == 2
    assert [len(reel.films) for reel in (*gallery.first, *gallery.further)] == [1, 1]


def make_frames():
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32] = (200, 40, 40)
    frame[32:] = (40, 40, 200)
    return [frame] * 3


def test_a_video_decodes_back_upright_and_in_colour(tmp_path):
    import imageio_ffmpeg

    write_video(tmp_path / "a.mp4", make_frames(), fps=10)
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
    (video,) = (
        r.video
        for r in load_records(folder)
        if (r.policy, r.id, r.seed) == ("expert", "VLA/Toy-Reach-v0", 0)
    )
    reader = imageio_ffmpeg.read_frames(str(folder / video))
    next(reader)
    first = np.frombuffer(next(reader), np.uint8).reshape(256, 256, 3).astype(int)
    assert np.abs(first - shown).mean() < 5
    assert np.abs(first[::-1] - shown).mean() > 10
