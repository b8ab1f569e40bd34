"""The feature cache: what is read is what was written, whoever wrote it, and whatever was joined or killed since."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import zlib

import numpy as np
import pytest
import soundfile
import torch
from voxzoo.components import RawWaveform
from voxzoo.components.errors import UserError
from voxzoo.datamodules import Collator, Utterance, feature_cache
from voxzoo.datamodules.feature_cache import FeatureCache

FORK = multiprocessing.get_context("fork")


def key(number):
    return hashlib.sha256(str(number).encode()).hexdigest()[:24]


def features(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(3 + number % 5, 4, generator=generator)


def in_a_process(work, *arguments, status=0):
    process = FORK.Process(target=work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == status


def put(folder, numbers):
    cache = FeatureCache(folder, "f")
    for number in numbers:
        cache.put(key(number), features(number))


def check(cache, numbers):
    for number in numbers:
        assert torch.equal(cache.get(key(number)), features(number)), number


def names(cache):
    return sorted(path.name for path in cache.folder.iterdir() if path.suffix in (".bin", ".index", ".keys"))


@pytest.fixture
def written(tmp_path):
    """Shards of three processes, two of which wrote the same."""
    for numbers in (range(10), range(10, 30), range(5, 12)):
        in_a_process(put, tmp_path, numbers)
    return FeatureCache(tmp_path, "f")


def test_what_ended_processes_wrote_is_joined(written, tmp_path):
    assert len(names(written)) == 6
    check(written, range(30))
    assert written.join() == 3
    assert names(written) == ["joined.bin", "joined.keys"]
    assert written.join() == 0
    for cache in (written, FeatureCache(tmp_path, "f"), pickle.loads(pickle.dumps(written))):
        check(cache, range(30))
        assert cache.get(key(99)) is None
    in_a_process(put, tmp_path, range(25, 40))
    assert FeatureCache(tmp_path, "f").join() == 1
    assert names(written) == ["joined.bin", "joined.keys"]
    check(FeatureCache(tmp_path, "f"), range(40))


def test_each_is_kept_once(written):
    written.join()
    sizes = sum(features(number).numel() * 4 for number in range(30))
    torn = sum(features(number).numel() * 4 for number in range(5, 12))  # of the shard that became the joined one
    assert sizes <= (written.folder / "joined.bin").stat().st_size <= sizes + torn


def test_what_is_being_written_is_left(tmp_path):
    writer, other = FeatureCache(tmp_path, "f"), FeatureCache(tmp_path, "f")
    writer.put(key(1), features(1))
    assert other.join() == 0
    writer.put(key(2), features(2))
    check(other, (1, 2))
    check(writer, (1, 2))
    del writer
    assert other.join() == 1
    check(other, (1, 2))


def test_a_reader_goes_on_when_its_shards_are_joined(written, tmp_path):
    written._look()  # knows the places, has mapped nothing
    mapped = FeatureCache(tmp_path, "f")
    check(mapped, (0, 12))
    FeatureCache(tmp_path, "f").join()
    check(written, range(30))
    check(mapped, range(30))


@pytest.mark.parametrize("moment", ["keys", "index", "bin"])
@pytest.mark.parametrize("joined_before", [False, True])
def test_a_killed_join_loses_nothing(tmp_path, monkeypatch, moment, joined_before):
    if joined_before:
        in_a_process(put, tmp_path, range(4))
        FeatureCache(tmp_path, "f").join()
    in_a_process(put, tmp_path, range(4, 9))
    in_a_process(put, tmp_path, range(7, 20))
    if moment == "keys":
        monkeypatch.setattr(feature_cache, "write_arrays", lambda *_: os._exit(9))
    else:
        unlink = feature_cache.Path.unlink

        def die(path, **options):
            if path.suffix == f".{moment}" and path.stem != "joined":
                os._exit(9)
            unlink(path, **options)

        monkeypatch.setattr(feature_cache.Path, "unlink", die)
    in_a_process(FeatureCache(tmp_path, "f").join, status=9)
    monkeypatch.undo()
    numbers = range(0 if joined_before else 4, 20)
    check(FeatureCache(tmp_path, "f"), numbers)
    in_a_process(put, tmp_path, range(19, 25))
    FeatureCache(tmp_path, "f").join()
    again = FeatureCache(tmp_path, "f")
    check(again, [*numbers, *range(19, 25)])
    assert [name for name in names(again) if name.endswith((".index", ".keys"))] == ["joined.keys"]


def test_processes_that_join_at_once_lose_nothing(written, tmp_path):
    barrier = FORK.Barrier(3)

    def start():
        cache = FeatureCache(tmp_path, "f")
        barrier.wait(20)
        cache.join()
        check(cache, range(30))

    processes = [FORK.Process(target=start) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    check(FeatureCache(tmp_path, "f"), range(30))
    assert names(written) == ["joined.bin", "joined.keys"]


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_a_reader_that_looks_while_shards_are_joined_finds_all(written, tmp_path, monkeypatch, moment):
    """Whatever of indices and joined keys it reads first, the other has what it missed."""
    glob = feature_cache.Path.glob
    joined = []

    def meanwhile(folder, pattern):
        once = pattern == "*.index" and not joined
        joined.append(once)
        if once and moment == "before":
            in_a_process(FeatureCache(tmp_path, "f").join)
        found = list(glob(folder, pattern))
        if once and moment == "behind":
            in_a_process(FeatureCache(tmp_path, "f").join)
        return iter(found)

    monkeypatch.setattr(feature_cache.Path, "glob", meanwhile)
    check(written, range(30))
    assert joined[0]
    assert [path.name for path in glob(written.folder, "*.index")] == []


def test_a_key_costs_a_reader_few_bytes_and_nothing_once_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_FRESH", 64)
    writer, reader = FeatureCache(tmp_path, "f"), FeatureCache(tmp_path, "f")
    for number in range(2000):
        writer.put(key(number), torch.full((1, 2), float(number)))
    assert reader.get(key(1999)).tolist() == [[1999.0, 1999.0]]
    for cache in (writer, reader):
        assert all(cache.get(key(number))[0, 1] == number for number in range(0, 2000, 7))
        places = cache._places
        assert len(places._fresh) < 64
        assert len(places._runs) < 10
        assert sum(keys.nbytes + rows.nbytes for keys, rows in places._runs) <= 2000 * 35
    del writer
    reader.join()
    later = FeatureCache(tmp_path, "f")
    assert all(later.get(key(number))[0, 1] == number for number in range(2000))
    assert not later._places._fresh
    assert not later._places._runs


def test_a_shard_of_an_earlier_version_is_read_and_joined(tmp_path):
    cache = FeatureCache(tmp_path, "f")
    cache.folder.mkdir(parents=True)
    values = features(0)
    (cache.folder / "old.bin").write_bytes(b"torn" + values.numpy().tobytes())
    line = f"{key(0)} 4 {len(values)} 4"
    check_sum = f"{zlib.crc32(line.encode()):08x}"
    (cache.folder / "old.index").write_text(f"{line} {check_sum}\n{key(1)} 0 9 9 00000000\nhalf a li")
    check(cache, [0])
    assert cache.get(key(1)) is None
    cache.join()
    check(FeatureCache(tmp_path, "f"), [0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("length", [0, 1, 2, 299, 3000])
def test_padding_at_the_end_is_kept_once(tmp_path, dtype, length):
    """A front end that pads three seconds to thirty does not fill the disk with it."""
    padded = torch.full((3000, 8), -0.75)
    padded[:length] = torch.randn(length, 8, generator=torch.Generator().manual_seed(0))
    cache = FeatureCache(tmp_path, "f", dtype)
    given = cache.put(key(0), padded)
    cache.put(key(1), padded[:1])
    cache.put(key(2), torch.cat([padded, -0.0 * padded[-1:]]))
    (shard,) = cache.folder.glob("*.bin")
    size = 4 if dtype == "float32" else 2
    kept = min(length + 1, 3000) + 1 + 3001
    assert shard.stat().st_size == kept * 8 * size
    for again in (cache, FeatureCache(tmp_path, "f", dtype)):
        assert torch.equal(again.get(key(0)), given)
        assert again.get(key(1)).shape == (1, 8)
        assert again.get(key(2)).shape == (3001, 8)
    cache._out = None
    del cache
    later = FeatureCache(tmp_path, "f", dtype)
    assert later.join() == 1
    assert torch.equal(later.get(key(0)), given)


def test_joined_keys_of_an_earlier_version_are_read_and_added_to(written, tmp_path):
    written.join()
    table = written.folder / "joined.keys"
    known = feature_cache.open_arrays(table)
    rows = feature_cache._rows_of(known["rows"])
    earlier = np.empty(len(rows), feature_cache._EARLIER)
    for name in feature_cache._EARLIER.names:
        earlier[name] = rows[name]
    feature_cache.write_arrays(table, {"bytes": known.about["bytes"]}, {"keys": known["keys"], "rows": earlier})
    check(FeatureCache(tmp_path, "f"), range(30))
    in_a_process(put, tmp_path, range(30, 40))
    FeatureCache(tmp_path, "f").join()
    check(FeatureCache(tmp_path, "f"), range(40))


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ([0.0, 0.5, -1.0, 32767 / 32768, 1 / 32768], 2),
        ([0.0, 0.1], 4),
        ([1.0], 4),
        ([-0.0, 0.5], 4),
        ([float("inf"), 0.5], 4),
    ],
)
def test_waveforms_of_16_bits_are_kept_as_such(tmp_path, values, size):
    cache = FeatureCache(tmp_path, "f")
    wave = torch.tensor(values)
    assert torch.equal(cache.put(key(0), wave), wave)
    found = FeatureCache(tmp_path, "f").get(key(0))
    assert found.dtype == torch.float32
    assert found.numpy().tobytes() == wave.numpy().tobytes()
    assert next(cache.folder.glob("*.bin")).stat().st_size == size * len(values)


def test_half_precision_is_the_same_fresh_and_cached(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(8000), 16000, subtype="FLOAT")
    item = Utterance(id="a", audio=str(path), duration=0.5, src_lang="spa")
    exact = FeatureCache(tmp_path / "cache", RawWaveform().fingerprint)
    half = FeatureCache(tmp_path / "cache", RawWaveform().fingerprint, "float16")
    fresh, cached = (Collator(RawWaveform(), None, {"speech"}, cache=half)([item]).speech.data[0] for _ in range(2))
    plain = Collator(RawWaveform(), None, {"speech"}, cache=exact)([item]).speech.data[0]
    assert torch.equal(fresh, cached)
    assert torch.equal(fresh, plain.half().float())
    assert not torch.equal(fresh, plain)
    assert 2 * next(half.folder.glob("*.bin")).stat().st_size == next(exact.folder.glob("*.bin")).stat().st_size
    with pytest.raises(UserError, match="float32 or float16"):
        FeatureCache(tmp_path, "f", "float8")  # pyright: ignore[reportArgumentType]


def test_it_grows_up_to_a_limit_and_says_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(feature_cache, "_STRIDE", 4000)
    other = FeatureCache(tmp_path, "of another front end", limit=40_000)
    other.put(key(999), torch.randn(500, 4))
    cache = FeatureCache(tmp_path, "f", limit=40_000)
    assert cache.line() == f"feature cache: 0.00 GB of at most 4e-05 (data.cache_gb) in {tmp_path}"
    for number in range(1000):
        assert torch.equal(cache.put(key(number), features(number)), features(number))
    assert 36_000 < cache.size() < 41_000
    assert FeatureCache(tmp_path, "of another front end").get(key(999)) is not None
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("feature cache: 0.00 GB of at most 4e-05 (data.cache_gb)")
    assert ": full; what it lacks is computed each time" in said
    kept = [number for number in range(1000) if FeatureCache(tmp_path, "f").get(key(number)) is not None]
    assert kept == [*range(len(kept))]
    assert len(kept) > 50
    check(cache, kept)
    again = pickle.loads(pickle.dumps(cache))
    again.put(key(5000), features(1))
    assert FeatureCache(tmp_path, "f").get(key(5000)) is None
    assert ": full;" in again.line()
    unlimited = FeatureCache(tmp_path, "f").line()
    assert unlimited.endswith(f"GB in {tmp_path}, which may grow without a limit (data.cache_gb)")
    wider = FeatureCache(tmp_path, "f", limit=80_000)
    wider.put(key(5000), features(1))
    check(FeatureCache(tmp_path, "f"), kept)
    assert torch.equal(FeatureCache(tmp_path, "f").get(key(5000)), features(1))


def test_several_writers_stay_near_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_STRIDE", 2000)

    def write(first):
        cache = FeatureCache(tmp_path, "f", limit=30_000)
        for number in range(first, first + 600):
            cache.put(key(number), features(number))

    processes = [FORK.Process(target=write, args=(1000 * place,)) for place in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    # The lines of the indices count too, but behind what they were written for.
    assert 24_000 < FeatureCache(tmp_path, "f").size() < 30_000 + 3 * 3000
