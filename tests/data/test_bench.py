import os
import re
import shutil

import pytest

from mofi_lightning.data.bench import bench, limit
from mofi_lightning.data.feeding import Speed
from mofi_lightning.types import InputError


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bench_prints_the_speed_of_three_stages_and_what_limits(i2e, rows, capsys, num_workers):
    bench(i2e, size=32, num_workers=num_workers, seconds=0.2)
    out = capsys.readouterr().out
    speeds = re.findall(r"^(read[a-z, ]*?) +([\d,]+) +([\d.,]+)$", out, re.MULTILINE)
    assert [name for name, *_ in speeds] == ["read", "read, decode", "read, decode, augment"]
    rates = [float(rate.replace(",", "")) for _, rate, _ in speeds]
    assert all(rate > 0 for rate in rates) and rates[0] > rates[2]
    mean = sum(len(row.image) for row in rows) / len(rows)
    megabytes = float(speeds[0][2].replace(",", ""))
    assert megabytes == pytest.approx(rates[0] * mean / 1e6, rel=0.1, abs=0.1)
    assert f"training is fed {speeds[2][1]} rows/s" in out


def test_bench_reads_without_entities_and_beside_bad_rows(plain, rows, tmp_path, capsys):
    dataset = shutil.copytree(plain, tmp_path / "d")
    chunk = dataset / "shards" / "chunk-000000.bin"
    data = bytearray(chunk.read_bytes())
    data[data.index(rows[5].image) + 99] ^= 1
    chunk.write_bytes(data)
    bench(dataset, size=16, num_workers=0, seconds=0.05)
    assert "training is fed" in capsys.readouterr().out
    os.truncate(chunk, 1000)
    with pytest.raises(InputError, match=r"chunk-000000\.bin has 1000 of"):
        bench(dataset, seconds=0.05)


def test_the_limit_is_the_work_that_takes_most_of_the_time():
    assert "fed 100 rows/s; reading takes 80% of the time" in limit([125, 111.1111, 100])
    assert "decoding takes 50% of the time" in limit([1000, 1000 / 3, 250])
    assert "augmenting takes 90% of the time" in limit([20_000, 10_000, 1000])
    assert "fed 100 rows/s; reading takes 92% of the time" in limit([100, 400, 300])  # the rest from memory


def test_a_rate_is_rows_over_seconds():
    assert Speed(300, 9, 1.5).rate == 200


@pytest.mark.parametrize("options", [{"size": 0}, {"num_workers": -1}, {"seconds": 0.0}])
def test_numbers_out_of_range_are_refused(plain, options):
    with pytest.raises(InputError, match="bench needs"):
        bench(plain, **options)
