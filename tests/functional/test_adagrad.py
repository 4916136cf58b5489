import torch

from mofi_lightning.functional import row_wise_adagrad_


def test_rows_follow_the_naive_rule_over_steps_and_the_others_stay():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    table, second_moment = start.clone(), torch.zeros(6, dtype=torch.float64)
    expected, sums = start.clone(), [0.0] * 6
    for ids in ([1, 3], [3, 4], [3, 1]):
        gradient = torch.randn(2, 4, generator=generator, dtype=torch.float64)
        row_wise_adagrad_(table, second_moment, torch.tensor(ids), gradient, learning_rate=0.1)
        for row, g in zip(ids, gradient, strict=True):
            sums[row] += sum(float(v) ** 2 for v in g) / 4
            expected[row] -= 0.1 * g / sums[row] ** 0.5
    torch.testing.assert_close(table, expected)
    torch.testing.assert_close(second_moment, torch.tensor(sums, dtype=torch.float64))
    assert torch.equal(table[[0, 2, 5]], start[[0, 2, 5]])


def test_a_row_without_gradient_stays_finite_and_unmoved():
    table = torch.ones(2, 3)
    row_wise_adagrad_(table, torch.zeros(2), torch.tensor([0, 1]), torch.zeros(2, 3), learning_rate=0.1)
    assert table.eq(1).all()
