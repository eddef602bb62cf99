"""GPUs by name and by hand, prices, the roofline, and what is refused."""

from collections import Counter

import pytest

from vpgtrans.cost.hardware import BANDWIDTH_SHARE, LAUNCH_SECONDS, Gpu, find_gpu, gpu_names
from vpgtrans.cost.tables import table
from vpgtrans.cost.tally import Tally
from vpgtrans.errors import EstimateError

ASKED = {
    "t4",
    "l4",
    "a10g",
    "rtx3090",
    "rtx4090",
    "rtx5090",
    "a100-40g",
    "a100-80g",
    "h100",
    "h200",
    "b200",
    "mi300x",
}
GPU = Gpu("g", "G", {"bfloat16": 100.0, "float32": 10.0}, 40, 1000, 2.0, "given")


def test_the_table_has_every_gpu_of_the_issue_with_a_dated_price() -> None:
    names = set(gpu_names())
    assert names >= ASKED
    assert {"v100-16g", "v100-32g"} <= names
    for row in table("gpus")["gpus"].values():
        assert row["price"] > 0
        assert row["source"]
        assert str(row["date"])[:2] == "20"
        assert row["float32"] <= row["float16"]


@pytest.mark.parametrize("word", ["A100-40G", "a100_40g", "a10040gb"])
def test_spellings(word: str) -> None:
    assert find_gpu(word).name == "a100-40g"


def test_unknown_gpu_names_the_nearest_and_the_way_by_hand() -> None:
    with pytest.raises(EstimateError, match=r"unknown GPU 'a100-50g'; nearest: a100-.*NAME:TFLOPS:GB"):
        find_gpu("a100-50g")


def test_a_gpu_by_hand() -> None:
    gpu = find_gpu("mine:200:48:900", 1.5)
    assert (gpu.peak("bfloat16"), gpu.memory_gb, gpu.bandwidth, gpu.price) == (200e12, 48, 900, 1.5)
    for wrong in ("mine:200", "mine:a:b", "mine:-1:40", ":1:2", "m:1:2:3:4", "m:0:4"):
        with pytest.raises(EstimateError, match="NAME:TFLOPS:GB"):
            find_gpu(wrong)


@pytest.mark.parametrize("price", [-1.0, 1e6, float("nan"), float("inf")])
def test_absurd_prices(price: float) -> None:
    with pytest.raises(EstimateError, match="no price of a GPU-hour"):
        find_gpu("t4", price)


def test_each_operation_waits_for_the_slower_of_peak_and_memory() -> None:
    compute = Tally(Counter({(10**13, 10**6, "bfloat16"): 1}))
    assert GPU.seconds(compute, 0.5) == pytest.approx(10**13 / (100e12 * 0.5))
    memory = Tally(Counter({(10**9, 10**10, "bfloat16"): 2}))
    assert GPU.seconds(memory, 0.5) == pytest.approx(2 * 10**10 / (1000e9 * BANDWIDTH_SHARE))
    tiny = Tally(Counter({(10, 10, "float32"): 100}))
    assert GPU.seconds(tiny, 0.5) == pytest.approx(100 * LAUNCH_SECONDS)
    assert GPU.memory_bound_share(compute, 0.5) == 0
    assert GPU.memory_bound_share(memory, 0.5) == 1


def test_dtypes_have_their_own_peaks() -> None:
    assert GPU.peak("float32") == 10e12
    assert find_gpu("t4").peak("bfloat16") == find_gpu("t4").peak("float16")
    assert GPU.peak("float64") == 10e12
