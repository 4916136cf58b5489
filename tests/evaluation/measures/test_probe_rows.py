import torch

from mofi_lightning.evaluation.measures.principal_axes import principal_axes
from mofi_lightning.evaluation.measures.probe_rows import content_order, validation_rows


def test_order_depends_on_what_rows_hold():
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    one, two = content_order(features, labels), content_order(features[shuffle], labels[shuffle])
    assert torch.equal(features[one], features[shuffle][two])
    assert labels[one].tolist() == sorted(labels.tolist())


def test_rounding_of_the_features_leaves_the_order_as_it_is():
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4
    assert torch.equal(content_order(features, labels), content_order(features * (1 + 1e-6), labels))


def test_a_fifth_of_each_class_is_held_out_and_never_a_whole_class():
    sizes = [1, 2, 3, 7, 10, 50]
    labels = torch.arange(6).repeat_interleave(torch.tensor(sizes))
    chosen = torch.bincount(labels[validation_rows(labels)], minlength=6).tolist()
    assert chosen == [0, 1, 1, 1, 2, 10]


def test_axes_rebuild_the_features_and_leave_out_what_does_not_vary():
    for rows, width in ((30, 8), (6, 20)):
        features = torch.randn(rows, width, generator=torch.Generator().manual_seed(2)).double()
        features[:, 1] = 2 * features[:, 0] + 3
        axes = principal_axes(features)
        torch.testing.assert_close(axes.mean + axes.coordinates @ axes.axes, features, rtol=0, atol=1e-6)
        rank = min(rows, width) - 1
        assert axes.axes.shape == (rank, width)
        torch.testing.assert_close(axes.axes @ axes.axes.T, torch.eye(rank).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(axes.coordinates.square().sum(dim=0), axes.energies)
