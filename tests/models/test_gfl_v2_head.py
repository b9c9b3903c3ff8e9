"""GFLv2: its product of scores as a logit, the quality network, the authors' weights."""

from __future__ import annotations

import math

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmengine.structures import InstanceData
from torch import Tensor

import gfl_det
from gfl_det.errors import ConfigError
from gfl_det.models.heads import GFLHead
from gfl_det.models.heads.gfl_v2_head import edge_statistics, joint_logits
from gfl_det.models.losses.functional import distribution_focal_loss, quality_focal_loss_from_scores
from gfl_det.ops.boxes import distances_to_boxes, giou, iou
from gfl_det.utils.timing import Runs
from projects.benchmark.parts import Case
from projects.benchmark.v2 import format_cost
from tests.helpers.compiling import shorten, traced
from tests.helpers.heads import NUM_CLASSES, head_config, make_gts, make_meta

SIZE = (128, 160)
LEVELS = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]


def build(**changes):
    head = MODELS.build(head_config(True, type='gfl_det.GFLv2Head', **changes))
    with torch.no_grad():  # a fresh net says nearly the same of every box, and finds nothing
        for layer in (head.reg_conf[0], head.reg_conf[2], head.gfl_reg, head.gfl_cls):
            layer.weight.normal_(std=0.5)
    return head


def make_features(batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 16, *size, generator=generator).to(dtype) for size in LEVELS]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_logit_of_a_product(dtype: torch.dtype) -> None:
    a, b = torch.meshgrid(*[torch.linspace(-12, 12, 97, dtype=dtype)] * 2, indexing='ij')
    product = a.double().sigmoid() * b.double().sigmoid()
    found = joint_logits(a, b)
    assert found.dtype == dtype
    torch.testing.assert_close(found, product.logit().to(dtype), rtol=1e-6, atol=5e-6)
    torch.testing.assert_close(found, joint_logits(b, a), rtol=1e-6, atol=5e-6)


def test_gradient_of_the_logit_of_a_product() -> None:
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    quality = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(joint_logits, (logits, quality))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_the_product_of_certain_scores_keeps_its_logit_and_gradient(dtype: torch.dtype) -> None:
    """Where both sigmoids round to 0 or 1: log(pq) = log p + log q, and 1 - pq = (1-p) + (1-q)."""
    a = torch.tensor([-200.0, -200.0, 200.0, 200.0, 90.0, 0.0], dtype=dtype, requires_grad=True)
    b = torch.tensor([-300.0, 200.0, -200.0, 200.0, 90.0, 300.0], dtype=dtype, requires_grad=True)
    found = joint_logits(a, b)
    expected = torch.tensor([-500.0, -200, -200, 200 - math.log(2), 90 - math.log(2), 0])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    torch.testing.assert_close(a.grad.float(), torch.tensor([1, 1, 0, 0.5, 0.5, 1]))
    torch.testing.assert_close(b.grad.float(), torch.tensor([1, 0, 1, 0.5, 0.5, 0]))


@pytest.mark.parametrize('with_mean', [True, False])
def test_edge_statistics_by_loops(with_mean: bool) -> None:
    num_bins, count = 6, 3
    edges = torch.randn(2, 4 * num_bins, 3, 5) * 2
    found = edge_statistics(edges, num_bins, count, with_mean)
    for image in range(2):
        for row in range(3):
            for column in range(5):
                expected = []
                for edge in range(4):
                    logits = edges[image, edge * num_bins : (edge + 1) * num_bins, row, column]
                    exps = [math.exp(value) for value in logits]
                    best = sorted((value / sum(exps) for value in exps), reverse=True)[:count]
                    expected += best + [sum(best) / count] * with_mean
                torch.testing.assert_close(
                    found[image, :, row, column], torch.tensor(expected), rtol=1e-5, atol=1e-6
                )


def slow_scores(head, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Probabilities and edge logits by the paper's words: softmax, sort, two layers, product."""
    scores, edges = [], []
    for x, scale in zip(features, head.scales):
        logits, edge = GFLHead.forward_single(head, x, scale)
        rows = edge.permute(0, 2, 3, 1).unflatten(-1, (4, -1)).softmax(-1)
        best = rows.sort(-1, descending=True).values[..., :4]
        statistics = torch.cat([best, best.mean(-1, keepdim=True)], dim=-1).flatten(3).type_as(x)
        first, second = head.reg_conf[0], head.reg_conf[2]
        hidden = (statistics @ first.weight[:, :, 0, 0].T + first.bias).relu()
        quality = (hidden @ second.weight[:, :, 0, 0].T + second.bias).sigmoid()
        scores.append(logits.sigmoid() * quality.permute(0, 3, 1, 2))
        edges.append(edge)
    return scores, edges


def slow_losses(head, features: list[Tensor], gts: list[InstanceData]) -> dict[str, Tensor]:
    """All losses from probabilities, dense, image by image."""
    scores, edges = slow_scores(head, features)
    priors = torch.cat(head.prior_generator.grid_priors(LEVELS, device='cpu'))
    counts = [height * width for height, width in LEVELS]
    stride = torch.cat([torch.full((n,), 8.0 * 2**level) for level, n in enumerate(counts)])
    cls_sum = box_sum = dfl_sum = weight_sum = positives = 0
    for image, gt in enumerate(gts):
        score = torch.cat([level[image].flatten(1).T for level in scores])
        edge = torch.cat([level[image].flatten(1).T for level in edges]).unflatten(1, (4, -1))
        found = head.assigner.assign(InstanceData(priors=priors), counts, gt)
        target = torch.zeros_like(score)
        chosen = found.gt_inds.nonzero().squeeze(1)
        if len(chosen):
            index = found.gt_inds[chosen] - 1
            step = stride[chosen][:, None]
            point = (priors[chosen, :2] + priors[chosen, 2:]) / 2 / step
            box = gt.bboxes[index] / step
            logits = edge[chosen]
            mean = logits.softmax(-1) @ torch.arange(17, dtype=logits.dtype)
            decoded = distances_to_boxes(point, mean)
            target[chosen, gt.labels[index]] = iou(decoded.detach(), box).to(score.dtype)
            weight = score[chosen].detach().amax(1)
            box_sum = box_sum + (weight * (1 - giou(decoded, box))).sum()
            side = torch.cat([point - box[:, :2], box[:, 2:] - point], 1).clamp(0, 15.9)
            edge_loss = distribution_focal_loss(logits, side).mean(1)
            dfl_sum = dfl_sum + (weight * edge_loss).sum()
            weight_sum = weight_sum + weight.sum()
        cls_sum = cls_sum + quality_focal_loss_from_scores(score, target).sum()
        positives += max(len(chosen), 1)
    divisor = max(float(weight_sum), 1.0)
    return dict(
        loss_cls=cls_sum / positives,
        loss_bbox=2 * box_sum / divisor + 0 * edges[0].sum(),
        loss_dfl=0.25 * dfl_sum / divisor + 0 * edges[0].sum(),
    )


@pytest.mark.parametrize('counts', [(5, 9), (0, 6), (0, 0)])
def test_losses_and_gradients_are_those_of_probabilities(counts: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    head = build().double()
    gts = [make_gts(count, SIZE, generator) for count in counts]
    features = make_features(2, torch.float64)
    gradients = []
    for losses in (
        head.loss_by_feat(*head(features), gts, [make_meta(SIZE)] * 2),
        slow_losses(head, features, gts),
    ):
        values = {name: float(value.detach()) for name, value in losses.items()}
        head.zero_grad()
        sum(losses.values()).backward()
        gradients.append((values, {name: p.grad.clone() for name, p in head.named_parameters()}))
    (found, ours), (expected, theirs) = gradients
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= 1e-5 * value.abs().max() + 1e-9, name
    assert all(value.abs().max() > 0 for name, value in ours.items() if 'reg_conf' in name)


def test_detections_are_those_of_probabilities() -> None:
    head, features, metas = build().eval(), make_features(2), [make_meta(SIZE)] * 2
    mmdets = MODELS.build(head_config(False))
    with torch.no_grad():
        found = head.predict_by_feat(*head(features), batch_img_metas=metas)
        scores, edges = slow_scores(head, features)
        logits = [level.double().logit().float() for level in scores]
        expected = mmdets.predict_by_feat(logits, edges, batch_img_metas=metas)
    for ours, theirs in zip(found, expected):
        assert len(ours) == len(theirs) > 10
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-4, atol=1e-2)
        assert torch.equal(ours.labels, theirs.labels)


def test_training_step_under_autocast_is_finite() -> None:
    head, generator = build(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.gfl_cls.bias.fill_(300)  # the product of such scores rounds to 1
        head.reg_conf[2].bias.fill_(300)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        scores, edges = head(make_features(2))
        gts = [make_gts(count, SIZE, generator) for count in (4, 0)]
        losses = head.loss_by_feat(scores, edges, gts, [make_meta(SIZE)] * 2)
    assert all(level.dtype == torch.float32 for level in (*scores, *edges))
    sum(losses.values()).backward()
    assert all(each.grad.isfinite().all() for each in head.parameters())
    assert head.gfl_cls.weight.grad.any()


def test_half_precision_weights() -> None:
    head = build().to(torch.bfloat16).eval()
    with torch.no_grad():
        results = head.predict_by_feat(
            *head(make_features(1, torch.bfloat16)), batch_img_metas=[make_meta(SIZE)]
        )
    assert results[0].scores.dtype == torch.float32


@pytest.mark.parametrize('through', ['torch', 'mmengine'])
def test_the_authors_weights_load(through: str) -> None:
    """Their release names the same layers and has a class channel more, which is dropped."""
    head = build()
    released = {name: torch.randn(value.shape) for name, value in head.state_dict().items()}
    assert {name for name in released if name.startswith('reg_conf')} == {
        f'reg_conf.{layer}.{kind}' for layer in (0, 2) for kind in ('weight', 'bias')
    }
    wanted = dict(released)
    released['gfl_cls.weight'] = torch.cat([released['gfl_cls.weight'], torch.ones(1, 32, 3, 3)])
    released['gfl_cls.bias'] = torch.cat([released['gfl_cls.bias'], torch.ones(1)])
    if through == 'torch':
        head.load_state_dict(released, strict=True)
    else:
        _load_checkpoint_to_model(head, dict(state_dict=released), strict=True)
    for name, value in head.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    assert len(released['gfl_cls.bias']) == NUM_CLASSES + 1


def test_another_number_of_classes_is_not_cut() -> None:
    config = head_config(True, type='gfl_det.GFLv2Head')
    config.num_classes = NUM_CLASSES + 2
    other = MODELS.build(config)
    with pytest.raises(RuntimeError, match='size mismatch'):
        build().load_state_dict(other.state_dict())


def test_v1_weights_load_up_to_the_quality_network() -> None:
    v1 = MODELS.build(head_config(False))
    missing, unexpected = build().load_state_dict(v1.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith('reg_conf.') for name in missing)
    assert len(missing) == 4


@pytest.mark.parametrize('count', [0, 18])
def test_more_top_values_than_bins_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f'reg_topk is {count}.*17 bins.*1 to 17'):
        build(reg_topk=count)


def test_options_size_the_quality_network() -> None:
    head = build(reg_topk=2, reg_channels=8, add_mean=False)
    assert head.reg_conf[0].weight.shape == (8, 8, 1, 1)
    head(make_features(1))


def test_training_compiles_into_one_graph() -> None:
    head, features = shorten(build(), 2), make_features(2)[:2]
    gts = [make_gts(count, SIZE, torch.Generator().manual_seed(0)) for count in (3, 5)]

    def loss(features, boxes, labels):
        instances = [InstanceData(bboxes=b, labels=n) for b, n in zip(boxes, labels)]
        losses = head.loss_by_feat(*head(features), instances, [make_meta(SIZE)] * 2)
        return sum(losses.values())

    arguments = features, [each.bboxes for each in gts], [each.labels for each in gts]
    compiled = torch.compile(loss, fullgraph=True, backend=traced)
    torch.testing.assert_close(compiled(*arguments), loss(*arguments))


def test_the_cost_over_v1_is_measured() -> None:
    lines = format_cost(Case((64, 64), batch=1), Runs(repeats=1)).splitlines()
    assert [line.split()[-1].endswith('%') for line in lines] == [False, True, True]


def test_optimised_inference_finds_the_same() -> None:
    config = gfl_det.get_config('gfl_r18_fpn_digits').model
    config.bbox_head.type = 'gfl_det.GFLv2Head'
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config).eval()
    torch.nn.init.normal_(model.bbox_head.gfl_cls.weight, std=0.1)
    inputs = torch.randn(1, 3, 128, 160)
    sample = DetDataSample(metainfo=dict(make_meta((128, 160)), batch_input_shape=(128, 160)))
    with torch.no_grad():
        found, expected = (
            each(inputs, [sample.clone()], mode='predict')[0].pred_instances
            for each in (gfl_det.optimize_for_inference(model), model)
        )
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.bboxes[:10], expected.bboxes[:10], rtol=1e-3, atol=0.05)
