"""The converter benchmark measures what it says: real tables out of shards that are mostly holes."""

from pathlib import Path

import torch

from benchmarks.converter import Size, measure_ridge, measure_sgd, shared_tokens, write_model
from vpgtrans.alignment.converter import Converter
from vpgtrans.alignment.tables import load_embedding_table
from vpgtrans.weights.headers import tensor_infos
from vpgtrans.weights.locate import locate_model

TINY = Size(5_000, 64, 4_500, 32, anchors=4_200, sgd_steps=2)


def write_both(folder: Path) -> None:
    write_model(folder / "source", TINY.source_rows, TINY.source_width, seed=1, layers=2)
    write_model(folder / "target", TINY.target_rows, TINY.target_width, seed=2, layers=2)


def test_the_model_folder_is_a_sharded_one_with_a_real_table_beside_holes(tmp_path: Path):
    total = write_model(tmp_path / "model", 5_000, 64, seed=1, layers=4)
    files = locate_model(str(tmp_path / "model"))
    shards = files.weight_files()
    assert len(shards) == 2
    assert total < sum(shard.stat().st_size for shard in shards) < total + 10_000
    infos = tensor_infos(files)
    assert len(infos) == 4 * 3 + 1
    assert {info.dtype for info in infos.values()} == {"BF16"}
    rows_VD = load_embedding_table(files).rows_VD
    generator = torch.Generator().manual_seed(1)
    expected_VD = torch.cat([torch.randn(n, 64, generator=generator) * 0.02 for n in (4096, 904)])
    assert torch.equal(rows_VD, expected_VD.bfloat16().float())


def test_shared_tokens_pair_each_row_once():
    anchors = shared_tokens(TINY, seed=3)
    assert len(set(anchors.source_ids.tolist())) == len(set(anchors.target_ids.tolist())) == TINY.anchors
    assert anchors.word_start.all()


def test_both_procedures_are_measured_on_the_same_tables(tmp_path: Path):
    write_both(tmp_path)
    ridge = measure_ridge(tmp_path, TINY)
    assert ridge["fitted"] == TINY.anchors - TINY.anchors // 10
    assert 0 < ridge["seconds_reading"] < ridge["seconds"]
    assert Converter.load(tmp_path / "converter").widths == (64, 32)
    sgd = measure_sgd(tmp_path, TINY)
    assert sgd["seconds"] == sgd["seconds_per_step"] * 2700
    assert sgd["timed_steps"] == 2
    assert 0 < sgd["last_loss"] < 2
