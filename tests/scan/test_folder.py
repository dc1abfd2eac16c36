"""One record for each file, whatever ends the process that writes."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_forgery.scan.collector import Collector
from llava_forgery.scan.folder import open_folder
from llava_forgery.scan.plan import Plan, Selection, parse_share
from llava_forgery.scan.schema import SCHEMA, to_table
from llava_forgery.scan.sources import Entry
from tests.scan.making import duplicate, result

SETTINGS = {"answers": "none"}


def records(root):
    """All of them by file, and no file twice."""
    rows = pq.read_table(root / "records").to_pylist()
    assert len({row["file"] for row in rows}) == len(rows)
    return {row["file"]: row for row in rows}


def collect(root, *results):
    with open_folder(root, SETTINGS) as folder, Collector(folder) as collector:
        collector.add(results)
    return collector


def test_records_hold_what_detect_prints_and_survive_parquet(tmp_path):
    collect(tmp_path, result("/a.jpg", 0.75, 0.25), result("/b.jpg", error="broken"))
    found = records(tmp_path)
    assert set(found["/a.jpg"]) == set(SCHEMA.names)
    assert found["/a.jpg"]["modified"].value == 1_700_000_000_000_000_007
    assert (found["/a.jpg"]["score"], found["/a.jpg"]["flagged"]) == (0.75, True)
    one, other = found["/a.jpg"]["faces"]
    assert (one["score"], one["band"], one["picture"]) == (0.75, "fake", b"jpeg")
    assert (other["box"], other["picture"], other["frames"]) == ([0.0, 0.0, 9.5, 9.5], None, None)
    assert (found["/b.jpg"]["error"], found["/b.jpg"]["faces"]) == ("broken", [])
    assert pq.read_schema(next((tmp_path / "records").iterdir())).metadata == SCHEMA.metadata


def test_results_that_come_twice_are_written_once(tmp_path):
    first = collect(tmp_path, result("/a.jpg", 0.75), result("/a.jpg", 0.75))
    again = collect(tmp_path, result("/a.jpg", 0.25), result("/b.jpg", 0.25, 0.5))
    assert (first.files, again.files, again.faces, again.flagged) == (1, 1, 2, 1)
    assert records(tmp_path)["/a.jpg"]["score"] == 0.75


def test_duplicates_are_copied_whichever_comes_first(tmp_path):
    one, other = "11" * 32, "22" * 32
    collect(tmp_path, duplicate("/b.jpg", one), result("/a.jpg", error="/a.jpg bad", sha256=one))
    collect(tmp_path, duplicate("/c.jpg", one), duplicate("/d.jpg", other),
            duplicate("/e.mp4", one, "video"))  # fmt: skip
    found = records(tmp_path)
    # Nobody has judged the bytes of /d.jpg yet, nor those of /e.mp4 as a video.
    assert list(found) == ["/a.jpg", "/b.jpg", "/c.jpg"]
    assert [row["duplicate_of"] for row in found.values()] == [None, "/a.jpg", "/a.jpg"]
    assert found["/c.jpg"]["error"] == "/c.jpg bad"
    assert (found["/c.jpg"]["size"], found["/c.jpg"]["modified"].value) == (3, 9)


def test_changed_files_lose_their_record_and_others_keep_theirs(tmp_path):
    collect(tmp_path, result("/a.jpg", 0.5), result("/b.jpg", 0.5), result("/e.jpg", error="x"))
    same = 1_700_000_000_000_000_007
    listed = [Entry("/a.jpg", 3, same), Entry("/b.jpg", 3, same + 1), Entry("/e.jpg", 3, same)]
    with open_folder(tmp_path, SETTINGS) as folder:
        plan = Plan(folder, [*listed, Entry("/new.mp4", 8, 1)])
        assert plan.drop_changed() == 1
        assert [entry.path for entry in plan.pending()] == ["/b.jpg", "/new.mp4"]
        assert {suffix: c.files for suffix, c in plan.count(True).items()} == {".jpg": 1, ".mp4": 1}
        assert plan.failed() == 1
        assert plan.drop_changed(retry_errors=True) == 1
        assert plan.drop_other_content([("/a.jpg", "00" * 32)]) == 0
        assert plan.drop_other_content([("/a.jpg", "33" * 32)]) == 1
        assert len(list(plan.pending())) == len(plan) == 4
    assert not list((tmp_path / "records").glob("*.parquet"))


@pytest.mark.parametrize("lost", ["index", "rows", "all", "damaged"])
def test_the_index_is_made_from_the_shards(tmp_path, lost):
    collect(tmp_path, result("/a.jpg", 0.5))
    index = tmp_path / "scan.sqlite"
    before = index.read_bytes()
    collect(tmp_path, result("/b.jpg", 0.5))
    (tmp_path / "records" / ".part-000002.parquet.0123abcd.tmp").write_bytes(b"half")
    if lost == "index":
        index.unlink()
    elif lost == "rows":
        # Killed between the shard and the index.
        index.write_bytes(before)
    elif lost == "damaged":
        index.write_bytes(b"no database" * 999)
    else:
        (tmp_path / "records" / "part-000001.parquet").unlink()
    with open_folder(tmp_path, SETTINGS) as folder:
        assert folder.has("/a.jpg")
        assert folder.has("/b.jpg") == (lost != "all")
    assert len(list((tmp_path / "records").iterdir())) == 2 - (lost == "all")
    collect(tmp_path, result("/b.jpg", 0.5), result("/c.jpg", 0.5))
    assert list(records(tmp_path)) == ["/a.jpg", "/b.jpg", "/c.jpg"]


def test_a_full_disk_leaves_what_was_written(tmp_path, fill_disk):
    collect(tmp_path, result("/a.jpg", 0.5))
    with open_folder(tmp_path, SETTINGS) as folder:
        collector = Collector(folder)
        collector.add([result("/b.jpg", 0.5)])
        fill_disk(1000)
        with pytest.raises(OSError, match=r"part-000001\.parquet"):
            collector.flush()
        fill_disk(None)
    assert list(records(tmp_path)) == ["/a.jpg"]

    def keep_a_part():
        with open_folder(tmp_path, SETTINGS) as folder:
            fill_disk(1000)
            folder.add_part(Entry("/long.mp4", 1, 1), "span 0", bytes(1 << 20))

    with pytest.raises(OSError, match=r"scan\.sqlite cannot be written"):
        keep_a_part()
    fill_disk(None)
    collect(tmp_path, result("/b.jpg", 0.5))
    assert list(records(tmp_path)) == ["/a.jpg", "/b.jpg"]


def test_shards_are_written_when_full_and_when_due(tmp_path):
    with open_folder(tmp_path, SETTINGS) as folder:
        collector = Collector(folder, most=2, seconds=3600)
        for name in "abc":
            collector.add([result(f"/{name}.jpg", 0.5)])
        assert len(folder.shards()) == 1
        due = Collector(folder, seconds=0)
        due.add([result("/d.jpg", 0.5)])
        assert len(folder.shards()) == 2


def test_another_scan_is_told_from_this_one(tmp_path):
    collect(tmp_path, result("/a.jpg", 0.5))
    with pytest.raises(ValueError, match="answers was 'none', now 'all'"):
        open_folder(tmp_path, {"answers": "all"}).__enter__()
    with open_folder(tmp_path, SETTINGS), pytest.raises(OSError, match="another scan writes"):
        open_folder(tmp_path, SETTINGS).__enter__()
    pq.write_table(pa.table({"file": ["/x"]}), tmp_path / "records" / "part-000009.parquet")
    with pytest.raises(ValueError, match="no file of a scan of layout 1"):
        open_folder(tmp_path, SETTINGS).__enter__()
    (tmp_path / "scan.json").unlink()
    with pytest.raises(ValueError, match=r"holds records but no scan\.json"):
        open_folder(tmp_path, SETTINGS).__enter__()


def test_a_field_that_the_schema_lacks_is_refused(tmp_path):
    record = result("/a.jpg", 0.5).record
    with pytest.raises(ValueError, match="has the fields .*extra"):
        to_table([{**record, "extra": 1}])
    record["faces"][0]["extra"] = 1
    with pytest.raises(ValueError, match="schema of a scan lacks extra"):
        to_table([record])


def test_selections_repeat_themselves(tmp_path):
    entries = [Entry(f"/{i}.jpg", 1, 1) for i in range(200)]

    def chosen(**options):
        with open_folder(tmp_path, SETTINGS) as folder:
            return [e.path for e in Plan(folder, entries, Selection(**options)).pending()]

    assert chosen() == [entry.path for entry in entries]
    assert chosen(limit=3) == ["/0.jpg", "/1.jpg", "/2.jpg"]
    shuffled = chosen(shuffle=True)
    assert sorted(shuffled) == sorted(chosen())
    assert shuffled != chosen()
    assert shuffled[:5] == chosen(shuffle=True, limit=5)
    assert chosen(shuffle=True, seed=1) != shuffled
    tenth = chosen(sample=0.1)
    assert 8 <= len(tenth) <= 35
    assert tenth == chosen(sample=0.1)
    assert set(tenth) <= set(chosen(sample=0.5))
    with pytest.raises(ValueError, match=r"sample in \(0, 1\]"):
        Selection(sample=0)


def test_shares():
    assert [parse_share(text) for text in ("1%", "0.25", "100%")] == [0.01, 0.25, 1.0]
    for text in ("0", "101%", "x", "nan"):
        with pytest.raises(ValueError, match="a share such as 1%"):
            parse_share(text)


def test_many_pending_files_come_in_pieces(tmp_path):
    with open_folder(tmp_path, SETTINGS) as folder:
        plan = Plan(folder, (Entry(f"/{i}.jpg", 1, 1) for i in range(2500)))
        pending = plan.pending()
        first = next(pending).path
        # Written while it is read.
        folder.add([result(first, 0.5).record])
        assert len(list(pending)) == 2499
        assert os.path.getsize(tmp_path / "scan.sqlite") > 0
