"""Shards behind servers that drop, stall and fail requests."""

import itertools
import random
import socket
import subprocess
import time
from pathlib import Path

import pytest
from servers import Weather, proxy, serving_files
from small_shards import sample, tokenize, train_data, write_tar

from vlm.data import Remote, ShardCache, open_shards, remote
from vlm.data.remote import StoreError, retry
from vlm.errors import ConfigError, DataError

PATIENT = Remote(timeout_s=0.5, retries_s=30.0)
S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def moto():
    """The address of an S3-compatible server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto, monkeypatch):
    """Makes a bucket of the files of a folder, and s3:// lead to an address."""
    boto3 = pytest.importorskip("boto3")
    S3FileSystem = pytest.importorskip("s3fs").S3FileSystem  # noqa: N806

    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)

    def make(folder, *, bucket):
        client = boto3.client("s3", endpoint_url=moto)
        client.create_bucket(Bucket=bucket)
        for path in folder.iterdir():
            client.upload_file(str(path), bucket, path.name)

    def lead_to(address):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        S3FileSystem.clear_instance_cache()

    yield make, lead_to
    S3FileSystem.clear_instance_cache()


def write_large_shards(folder: Path, sizes, *, suffix="tar", size=20_000) -> str:
    """Shards whose samples hold so many bytes more, which no compression shortens."""
    number = 0
    for shard, count in enumerate(sizes):
        members = {
            f"{n:06d}": sample(n) | {"png": sample(n)["png"] + random.Random(n).randbytes(size)}
            for n in range(number, number + count)
        }
        write_tar(folder / f"{shard:05d}.{suffix}", members)
        number += count
    return f"{folder}/{{00000..{len(sizes) - 1:05d}}}.{suffix}"


def epoch(pattern, *, num_workers=2, patience=PATIENT, **changes):
    """Keys without folders, pixels and token ids of an epoch, in order."""
    data = train_data(pattern, num_workers=num_workers, remote=patience, **changes).open()
    loader = data.loader(tokenize, start_step=0, stop_step=data.batches_per_epoch, rank=0, world_size=1)
    return [
        ([key.rsplit("/", 1)[1] for key in b["key"]], b["image"].tolist(), b["text"].tolist()) for b in loader
    ]


def check_each_once(batches, count):
    keys = [key for batch in batches for key in batch[0]]
    assert sorted(keys) == [f"{n:06d}" for n in range(count)]


@pytest.mark.parametrize(
    ("suffix", "ranges", "cached"),
    [("tar", True, False), ("tar", False, False), ("tar.gz", True, False), ("tar", True, True)],
)
def test_an_epoch_over_http_has_every_sample_once_in_bad_weather(tmp_path, suffix, ranges, cached):
    local = write_large_shards(tmp_path / "s", [40, 13, 27], suffix=suffix)
    expected = epoch(local, num_workers=0)
    check_each_once(expected, 80)
    weather = Weather()
    cache = ShardCache(folder=str(tmp_path / "copies") if cached else None, max_gib=1.0)
    with serving_files(tmp_path, ranges=ranges) as server, proxy(server, weather) as address:
        assert epoch(local.replace(str(tmp_path), address), cache=cache) == expected
    assert weather.failed > 2


def test_an_epoch_over_s3_has_every_sample_once_in_bad_weather(tmp_path, moto, s3):
    make, lead_to = s3
    local = write_large_shards(tmp_path / "s", [40, 13, 27])
    expected = epoch(local, num_workers=0)
    make(tmp_path / "s", bucket="epoch")
    weather = Weather()
    with proxy(moto, weather) as address:
        lead_to(address)
        assert epoch("s3://epoch/*.tar") == expected
    assert weather.failed > 2


@pytest.mark.long
@pytest.mark.parametrize("store", ["http", "http without ranges", "s3", "s3 with a cache"])
def test_a_long_epoch_has_every_sample_once_in_bad_weather(tmp_path, moto, s3, store, monkeypatch):
    monkeypatch.setattr(remote, "_LARGEST_BLOCK", 1 << 18)  # more requests
    local = write_large_shards(tmp_path / "s", [250] * 16)
    expected = epoch(local, global_batch_size=32, shuffle_samples=1024)
    check_each_once(expected, 4000)
    weather = Weather()
    cache = ShardCache(folder=str(tmp_path / "copies") if "cache" in store else None, max_gib=0.05)
    with serving_files(tmp_path, ranges="without" not in store) as server:
        behind = moto if "s3" in store else server
        with proxy(behind, weather) as address:
            pattern = local.replace(str(tmp_path), address)
            if "s3" in store:
                make, lead_to = s3
                bucket = store.replace(" ", "-") + "-bucket"
                make(tmp_path / "s", bucket=bucket)
                lead_to(address)
                pattern = f"s3://{bucket}/*.tar"
            found = epoch(pattern, cache=cache, global_batch_size=32, shuffle_samples=1024)
    assert found == expected
    assert weather.failed > (2 if "without" in store else 20)


class Clock:
    """Time that passes by sleeping."""

    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(remote, "time", clock)
    return clock


def failing(error, times=10**6):
    """A call that fails so often, then returns how often it was made."""
    calls = itertools.count(1)

    def attempt():
        call = next(calls)
        if call <= times:
            raise error
        return call

    return attempt


def test_pauses_grow_and_vary_until_a_request_succeeds(clock):
    state = random.getstate()
    assert retry(failing(OSError("busy"), 12), remote=Remote(timeout_s=1.0, retries_s=300.0), name="x") == 13
    assert all(0.1 * 2**n <= pause <= 0.2 * 2**n for n, pause in enumerate(clock.pauses[:7]))
    assert all(10 <= pause <= 20 for pause in clock.pauses[7:])
    assert len(set(clock.pauses)) == 12
    assert random.getstate() == state  # training draws the same numbers whatever the weather


def test_retries_end_within_their_time(clock, caplog):
    with pytest.raises(StoreError, match=r"^busy \(1\d tries in \d\d s\)$"):
        retry(failing(OSError("busy")), remote=Remote(timeout_s=1.0, retries_s=90.0), name="http://x/a.tar")
    assert 60 < clock.now <= 90
    assert caplog.messages == ["http://x/a.tar: busy; trying again for 90 s"]


def test_what_will_not_pass_is_believed_after_a_few_tries(clock):
    patient = Remote(timeout_s=1.0, retries_s=300.0)
    with pytest.raises(FileNotFoundError):
        retry(failing(FileNotFoundError()), remote=patient, name="x")
    assert len(clock.pauses) == 3
    with pytest.raises(StoreError, match="access is denied"):
        retry(failing(PermissionError("no")), remote=patient, name="x", refused_tries=4)
    assert len(clock.pauses) == 6
    assert retry(failing(PermissionError("no"), 9), remote=patient, name="x") == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timeout_s": 0.0, "retries_s": 1.0}, "data.remote.timeout_s=0.0 must be a positive number"),
        ({"timeout_s": 1.0, "retries_s": -1.0}, "data.remote.retries_s=-1.0 must be"),
    ],
)
def test_impossible_patience_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Remote(**values)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def message_of(pattern, patience=PATIENT):
    with pytest.raises(DataError) as caught:
        train_data(pattern, remote=patience).open()
    return str(caught.value)


def test_a_dead_host_is_named_once_with_the_key():
    url = f"http://127.0.0.1:{free_port()}/{{00000..00009}}.tar"
    message = message_of(url)
    assert message.startswith(f"data.train.shards: {url.replace('{00000..00009}', '00000')} cannot be read: ")
    assert "no connection to 127.0.0.1:" in message
    assert message.count("http://") == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "the server answered 403 Forbidden"), (404, "the server answered 404 Not Found")],
)
def test_a_refusal_at_the_start_is_told_at_once(tmp_path, status, said):
    """Within seconds, though the run would try for five minutes once it is under way."""
    patient = Remote(timeout_s=5.0, retries_s=300.0)
    with serving_files(tmp_path) as server, proxy(server, Weather(1.0, (status,))) as address:
        message = message_of(f"{address}/00000.tar", patient)
    assert said in message
    assert message.count("http://") == 1


def test_a_server_that_never_answers_does_not_hang_the_start(tmp_path):
    with serving_files(tmp_path) as server, proxy(server, Weather(1.0, ("stall",))) as address:
        message = message_of(f"{address}/00000.tar", Remote(timeout_s=0.2, retries_s=1.0))
    assert "no answer within 0.2 s" in message


def test_a_bucket_that_is_not_there_and_keys_that_are_missing_are_told(moto, s3, monkeypatch):
    _, lead_to = s3
    lead_to(moto)
    assert "data.train.shards: s3://absent-bucket/0.tar cannot be read" in message_of(
        "s3://absent-bucket/0.tar"
    )
    assert "matches no file" in message_of("s3://absent-bucket/*.tar")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    lead_to(moto)
    assert "credentials" in message_of("s3://absent-bucket/0.tar")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_outage_that_outlasts_the_retries_ends_the_run_with_one_message(tmp_path, num_workers):
    local = write_large_shards(tmp_path / "s", [40, 13, 27])
    weather = Weather(0.0, (503,))
    with serving_files(tmp_path) as server, proxy(server, weather) as address:
        patience = Remote(timeout_s=0.5, retries_s=1.0)
        pattern = local.replace(str(tmp_path), address)
        data = train_data(pattern, remote=patience, num_workers=num_workers).open()
        weather.share = 1.0
        with pytest.raises(DataError) as caught:
            list(data.loader(tokenize, start_step=0, stop_step=10, rank=0, world_size=1))
    message = str(caught.value)
    assert ".tar cannot be read at sample" in message
    assert "the server answered 503 Service Unavailable" in message
    assert "run.resume=true" in message
    assert "data.remote.retries_s=1 " in message
    assert message.count("http://") == 1


def test_a_refusal_under_way_is_waited_out(tmp_path):
    local = write_large_shards(tmp_path / "s", [40, 13, 27])
    expected = [batch[0] for batch in epoch(local, num_workers=0)]
    weather = Weather(0.0, (403,))
    with serving_files(tmp_path) as server, proxy(server, weather) as address:
        data = train_data(local.replace(str(tmp_path), address), remote=PATIENT).open()
        weather.share = 0.3
        loader = data.loader(tokenize, start_step=0, stop_step=10, rank=0, world_size=1)
        assert [[key.rsplit("/", 1)[1] for key in batch["key"]] for batch in loader] == expected
    assert weather.failed > 5


def test_a_few_captions_cost_a_small_part_of_a_shard(tmp_path):
    local = write_large_shards(tmp_path / "s", [200, 200])
    open_shards(local, key="k")
    weather = Weather(0.0)
    with serving_files(tmp_path) as server, proxy(server, weather) as address:
        data = train_data(local.replace(str(tmp_path), address), remote=PATIENT).open()
        assert list(data.captions(20)) == [f"caption {n}" for n in range(20)]
    assert weather.bytes_sent < 0.4 * (tmp_path / "s/00000.tar").stat().st_size


def test_a_command_that_fails_midway_is_run_again_and_read_on(tmp_path):
    local = write_large_shards(tmp_path, [40]).replace("{00000..00000}", "00000")
    expected = epoch(local, num_workers=0)
    script = tmp_path / "fetch.sh"
    script.write_text(
        f"if [ $(cat {tmp_path}/runs 2>/dev/null | wc -l) -lt $1 ]; then\n"
        f"  echo >> {tmp_path}/runs; head -c 300000 {local}; exit 3\nfi\nexec cat {local}\n"
    )
    command = f"pipe:sh {script}"
    assert epoch(f"{command} 3", num_workers=0) == expected
    assert len((tmp_path / "runs").read_text()) == 3
    (tmp_path / "runs").write_text("")
    assert "the command ended with exit status 3" in message_of(
        f"{command} 999", Remote(timeout_s=1.0, retries_s=0.5)
    )


def test_a_command_that_stalls_is_ended(tmp_path):
    marker = f"sleep 9{random.Random().randrange(10**6):06d}"
    message = message_of(f"pipe:{marker}", Remote(timeout_s=0.2, retries_s=0.3))
    assert "no answer within 0.2 s" in message
    deadline = time.monotonic() + 60
    while is_running(marker):
        assert time.monotonic() < deadline


def is_running(command):
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return command in found.stdout
