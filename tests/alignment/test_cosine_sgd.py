"""The authors' procedure against torch's own layer and optimizer."""

import pytest
import torch

from tests.alignment.planted import gathered, related_rows
from vpgtrans.alignment.cosine_sgd import cosine_sgd, default_epochs, occurrences
from vpgtrans.alignment.rows import AnchorRows
from vpgtrans.errors import TrainingError
from vpgtrans.progress import SILENT


def float_rows(number: int, width_s: int, width_t: int, weights: torch.Tensor | None = None) -> AnchorRows:
    rows, _, _ = related_rows(number, width_s, width_t, noise=0.2, weights=weights)
    return AnchorRows(
        rows.source_VS.float(), rows.target_VT.float(), rows.source_ids, rows.target_ids, rows.weights
    )


def start_of(rows: AnchorRows, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    fit = cosine_sgd(rows, epochs=1, learning_rate=0.0, batch_size=1000, seed=seed)
    return fit.weight_TS, fit.bias_T


def test_one_step_is_one_step_of_torch_sgd_on_the_mean_of_one_minus_cosine():
    rows = float_rows(50, 4, 3)
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        for parameter, start in zip(layer.parameters(), start_of(rows, seed=5), strict=True):
            parameter.copy_(start)
    x_AS, y_AT = gathered(rows)
    out_AT = layer(x_AS)
    loss = (1 - (out_AT * y_AT).sum(1) / (out_AT.norm(dim=1) * y_AT.norm(dim=1))).mean()
    loss.backward()
    torch.optim.SGD(layer.parameters(), lr=0.5).step()
    fit = cosine_sgd(rows, epochs=1, learning_rate=0.5, batch_size=50, seed=5)
    torch.testing.assert_close(fit.weight_TS, layer.weight.detach())
    torch.testing.assert_close(fit.bias_T, layer.bias.detach())
    assert fit.losses == (pytest.approx(float(loss.detach()), rel=1e-5),)


def test_it_starts_as_a_linear_layer_does():
    rows = float_rows(20, 16, 300)
    weight_TS, bias_T = start_of(rows, seed=0)
    for start in (weight_TS, bias_T):
        assert 0.24 < float(start.abs().max()) <= 0.25  # 1 / sqrt(16)
        assert abs(float(start.mean())) < 0.03


def test_a_pair_of_weight_three_stands_three_times_in_an_epoch():
    weights = torch.tensor([1.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    rows = float_rows(4, 3, 2, weights=weights)
    copies = rows.select(torch.tensor([0, 1, 1, 1, 2, 2, 3]))
    copies = AnchorRows(
        rows.source_VS,
        rows.target_VT,
        copies.source_ids,
        copies.target_ids,
        torch.ones(7, dtype=torch.float64),
    )
    assert occurrences(weights) == occurrences(copies.weights) == 7
    fits = [cosine_sgd(part, 3, learning_rate=0.3, batch_size=7, seed=1) for part in (rows, copies)]
    torch.testing.assert_close(fits[0].weight_TS, fits[1].weight_TS)
    small = [cosine_sgd(part, 1, learning_rate=0.3, batch_size=2, seed=1) for part in (rows, copies)]
    assert torch.equal(small[0].weight_TS, small[1].weight_TS)


def test_weights_below_one_count_once():
    assert occurrences(torch.tensor([0.1, 0.4, 1.2], dtype=torch.float64)) == 3


def test_it_learns_a_planted_relation_and_reports_each_epoch():
    rows = float_rows(400, 6, 5)
    fit = cosine_sgd(rows, epochs=30, learning_rate=2.0, batch_size=40, seed=0)
    assert len(fit.losses) == 30
    assert fit.losses[-1] < 0.1 * fit.losses[0]
    assert fit.losses[-1] < 0.05


def test_the_seed_decides_and_the_global_generator_stays_alone():
    rows = float_rows(100, 4, 3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = cosine_sgd(rows, 2, 1.0, 16, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = cosine_sgd(rows, 2, 1.0, 16, seed=0)
    assert torch.equal(first.weight_TS, again.weight_TS)
    assert not torch.equal(first.weight_TS, cosine_sgd(rows, 2, 1.0, 16, seed=1).weight_TS)


def test_the_order_differs_between_epochs():
    rows = float_rows(100, 4, 3)
    once = cosine_sgd(rows, 2, 0.0, 10, seed=0)
    assert once.losses[0] == pytest.approx(once.losses[1], rel=1e-6)
    orders = []

    class Spy:
        def advance(self, amount: float = 1) -> None:
            pass

        def show(self, **values: str | float) -> None:
            orders.append(values["loss"])

    cosine_sgd(rows, 2, 0.0, 10, seed=0, task=Spy())
    assert orders[:10] != orders[10:]


def test_every_occurrence_is_reported():
    rows = float_rows(25, 4, 3, weights=torch.full((25,), 2.0, dtype=torch.float64))
    seen = []
    with SILENT.task("") as task:
        task.advance = seen.append  # type: ignore[method-assign]
        cosine_sgd(rows, 3, 1.0, 20, seed=0, task=task)
    assert sum(seen) == 3 * 50


def test_it_works_inside_no_grad():
    rows = float_rows(25, 4, 3)
    with torch.no_grad():
        fit = cosine_sgd(rows, 1, 1.0, 5, seed=0)
    assert torch.equal(fit.weight_TS, cosine_sgd(rows, 1, 1.0, 5, seed=0).weight_TS)


def test_the_authors_numbers_of_epochs():
    rows = float_rows(25, 4, 3)
    assert default_epochs(rows) == 8
    same = AnchorRows(rows.source_VS, rows.target_VT, rows.source_ids, rows.source_ids, rows.weights)
    assert default_epochs(same) == 5


def test_a_loss_that_is_no_number_is_an_error():
    rows = float_rows(25, 4, 3)
    rows.target_VT[rows.target_ids[3]] = torch.nan
    with pytest.raises(TrainingError, match=r"epoch 1 at learning rate 1\.0.*use method ridge"):
        cosine_sgd(rows, 4, 1.0, 5, seed=0)
