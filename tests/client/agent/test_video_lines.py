"""Lines with videos train only where the policy names the column."""

import json
import os

import pytest

from client.agent.agent import Agent
from client.agent.review import review_run
from client.agent.video_lines import has_videos
from tests.client.agent.houses import call_for, definition_for, enrol, make_house, order_for, policy_for
from umbel.errors import DataError, SiteError


def with_videos(root):
    path = root / "data" / "train.jsonl"
    bodies = [json.loads(line) for line in path.read_text().splitlines()]
    for body in bodies:
        body["video"] = [body.pop("image")]
    path.write_text("\n".join(map(json.dumps, bodies)) + "\n")


def test_a_video_needs_its_column(own_root):
    with_videos(own_root)
    table = policy_for(own_root)
    house = make_house(own_root / "site", table)
    enrol([house])
    said = "column 'video' of"
    with pytest.raises(SiteError, match=said):
        Agent(house).train(call_for(own_root), order_for(own_root))
    assert any(said in sentence for sentence in review_run(house, definition_for(own_root)).objections)
    table["data"][0]["columns"].append("video")
    house = make_house(own_root / "site", table)
    found = review_run(house, definition_for(own_root))
    assert found.objections == ()
    assert dict(found.facts)["data"].endswith("columns image, question, answer, video")
    assert Agent(house).train(call_for(own_root), order_for(own_root)).update.any()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"video": "a.gif"}', True),
        ('{"\\u0076ideo": "a.gif"}', True),
        ('\ufeff{"video": ["a.png"]}', True),
        ('{"video": null, "image": "a.png"}', False),
        ('{"question": "a \\"video\\" ?"}', False),
        ('{"answer": "video"}', False),
        ('{"video": ', False),
    ],
)
def test_what_is_a_line_with_a_video(tmp_path, line, found):
    (tmp_path / "train.jsonl").write_text('{"image": "a.png"}\n' + line + "\n")
    assert has_videos(tmp_path) is found


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    assert not has_videos(tmp_path)
    path.write_text('{"video": "a.gif"}\n')
    os.utime(path, (1, 1))
    assert has_videos(tmp_path)


def test_a_folder_without_lines_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        has_videos(tmp_path)
