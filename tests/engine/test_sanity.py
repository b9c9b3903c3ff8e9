"""The overfit check, and which part is named where one was broken on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.cli import sanity
from gfl_det.engine.sanity import evidence
from gfl_det.engine.sanity.evidence import Examples, load
from gfl_det.engine.sanity.overfit import (
    OverfitCurve,
    Scores,
    Suspect,
    score,
    suspects_of_curve,
    suspects_of_data,
    verdict,
)
from tests.helpers.commands import run_tool

SIDE = 96
COLOURS = ((230, 60, 40), (40, 90, 230))


def scenes(number: int, seed: int = 0) -> Examples:
    """Pictures of noise with three rectangles each, red ones wide, blue ones high."""
    generator = np.random.default_rng(seed)
    pictures, boxes, labels = [], [], []
    for _ in range(number):
        picture = generator.integers(90, 160, (SIDE, SIDE, 3)).astype(np.uint8)
        rows, classes = [], []
        for place in range(3):
            label = int(generator.integers(2))
            # On the lattice of the priors, so that an edge's distribution ends at one bin.
            wide, high = (32, 24) if label == 0 else (24, 32)
            x, y = 8 * int(generator.integers(0, (SIDE - wide) // 8 + 1)), place * 32
            picture[y : y + high, x : x + wide] = COLOURS[label]
            rows.append((x, y, x + wide, y + high))
            classes.append(label)
        pictures.append(picture)
        boxes.append(np.array(rows, float))
        labels.append(np.array(classes))
    return Examples(pictures, boxes, labels)


def shuffled(examples: Examples, seed: int) -> Examples:
    """The same with labels exchanged at random."""
    flat = np.random.default_rng(seed).permutation(np.concatenate(examples.labels))
    return examples._replace(labels=np.split(flat, np.cumsum(list(map(len, examples.labels)))[:-1]))


class TestEvidence:
    def test_true_boxes_and_labels_beat_chance(self):
        examples = scenes(16)
        least = 1 / (1 + evidence.ROUNDS)
        assert evidence.box_chance(examples) == least
        assert evidence.label_chance(examples) == least

    def test_shuffled_labels_are_chance(self):
        chances = [evidence.label_chance(shuffled(scenes(24), seed)) for seed in range(8)]
        assert sorted(chances)[1] > evidence.CHANCE  # chance itself may pass once
        assert 0.2 < np.mean(chances) < 0.8

    def test_boxes_of_other_pictures_are_chance(self):
        examples = scenes(24)
        for shift in range(1, 6):
            moved = examples._replace(boxes=[*examples.boxes[shift:], *examples.boxes[:shift]])
            assert evidence.box_chance(moved) > evidence.CHANCE

    def test_boxes_of_another_size_are_chance(self):
        examples = scenes(24)
        halved = examples._replace(boxes=[boxes / 2 for boxes in examples.boxes])
        assert evidence.box_chance(halved) > evidence.CHANCE

    def test_a_frequent_class_does_not_hide_the_others(self):
        examples = scenes(24)
        rare = [np.where(np.arange(3) == 0, each, 0) for each in examples.labels]
        looks_like = examples._replace(labels=rare)
        assert evidence.label_chance(shuffled(looks_like, 1)) > evidence.CHANCE

    @pytest.mark.parametrize('number', [1, 3])
    def test_too_few_prove_nothing(self, number):
        assert evidence.box_chance(scenes(number)) is None
        assert evidence.label_chance(scenes(number)) is None

    def test_one_class_proves_nothing(self):
        examples = scenes(16)
        alike = examples._replace(labels=[np.zeros(3, int)] * 16)
        assert evidence.label_chance(alike) is None

    def test_edges_drawn_by_hand(self):
        picture = np.zeros((20, 20, 3), np.uint8)
        picture[5:15, 4:12] = 200
        sums = evidence.edge_sums(picture)
        right, shifted = evidence.along_edges(
            sums, np.array([[4.0, 5, 12, 15], [7.0, 9, 15, 19]]), band=1
        )
        assert right > 0 > shifted

    def test_boxes_outside_the_picture_and_of_no_size(self):
        picture = scenes(1).pictures[0]
        boxes = np.array([[-50.0, -50, -10, -10], [5, 5, 5, 5], [90, 90, 500, 500]])
        assert np.isfinite(evidence.looks(picture, boxes)).all()
        assert np.isfinite(evidence.along_edges(evidence.edge_sums(picture), boxes)).all()


def curve(
    losses: list[float],
    scores: tuple | None = None,
    moved: float = 0.5,
    rate: float = 0.01,
    **terms,
) -> OverfitCurve:
    steps = [
        {'loss': value, 'loss_cls': value * 0.1, 'loss_bbox': value * 0.9, 'loss_dfl': 0.2}
        for value in losses
    ]
    steps[-1].update(terms)
    return OverfitCurve(steps, scores and Scores(*scores), moved, rate)


FLAT = curve([1.0] * 60)
FALLEN = curve([1.0, *[0.2] * 59])
NAN = float('nan')


class TestDiagnosis:
    def test_a_goal_reached_has_no_suspect(self):
        good = curve([1.0, *[0.05] * 99], (0.95, 0.96))
        assert good.reached
        assert suspects_of_curve(good, None, None) == []
        assert verdict(good, []).startswith(
            'OVERFITTED: the loss fell by 95.0% in 100 steps, AP 0.950'
        )

    @pytest.mark.parametrize(
        ('losses', 'scores'),
        [([1.0, *[0.2] * 9], (0.95, 0.95)), ([1.0, *[0.05] * 9], (0.8, 0.95))],
    )
    def test_both_goals_count(self, losses, scores):
        assert not curve(losses, scores).reached

    @pytest.mark.parametrize(
        ('main', 'slower', 'faster', 'part', 'words'),
        [
            (curve([1.0] * 60, (0, 0), rate=0.0), FLAT, FLAT, 'learning rate', 'it is 0'),
            (curve([1.0] * 60, (0, 0)), FLAT, FALLEN, 'learning rate', 'too low: ten times'),
            (curve([1.0] * 60, (0, 0)), FALLEN, FLAT, 'learning rate', 'too high: a tenth'),
            (curve([1.0, 5.0, NAN]), FALLEN, None, 'learning rate', 'too high'),
            (curve([1.0, 2.0, 3.0], (0, 0), 0.1), FLAT, None, 'learning rate', 'the loss rose'),
            (curve([1.0] * 60, (0, 0), 1e-5), FLAT, FLAT, 'learning rate', 'moved by 1.0e-05'),
            (curve([1.0, *[0.05] * 99], (0.5, 0.95)), FLAT, FLAT, 'labels', 'classes are not'),
            (curve([1.0, *[0.05] * 99], (0.5, 0.55)), FLAT, FLAT, 'boxes', 'regardless of class'),
            (
                curve([1.0, *[0.2] * 99], (0.95, 0.95), loss_cls=0.0),
                FLAT,
                FLAT,
                'boxes',
                'loss_bbox',
            ),
            (
                curve([1.0, *[0.2] * 99], (0.95, 0.95), loss_bbox=0.0, loss_dfl=0.2),
                FLAT,
                FLAT,
                'labels',
                'loss_cls',
            ),
        ],
    )
    def test_each_part_by_its_signs(self, main, slower, faster, part, words):
        (suspect,) = suspects_of_curve(main, slower, faster)
        assert suspect.part == part
        assert words in suspect.reason
        assert f'looks wrong: {part}' in verdict(main, [suspect])

    @pytest.mark.parametrize(('term', 'part'), [('loss_bbox', 'boxes'), ('loss_cls', 'labels')])
    def test_a_non_finite_first_loss(self, term, part):
        main = curve([NAN], **{'loss_bbox': 1.0, 'loss_cls': 1.0, term: NAN})
        (suspect,) = suspects_of_curve(main, None, None)
        assert (suspect.part, term in suspect.reason) == (part, True)

    def test_what_the_data_says(self):
        assert suspects_of_data(None, 0.005, None) == []
        found = suspects_of_data('corners', 0.4, 0.6)
        assert [each.part for each in found] == ['boxes', 'boxes', 'labels']
        good = curve([1.0, *[0.05] * 99], (0.95, 0.96))
        assert 'WITH FINDINGS' in verdict(good, found)


class Echo(torch.nn.Module):
    """A detector that predicts its gt boxes, with labels of choice."""

    def __init__(self, label: int | None = None) -> None:
        super().__init__()
        self.label = label

    def data_preprocessor(self, batch: dict, training: bool) -> dict:
        return batch

    def predict(self, inputs: list, samples: list, rescale: bool) -> list:
        assert not rescale
        for sample in samples:
            gts = sample.gt_instances
            labels = gts.labels if self.label is None else gts.labels * 0 + self.label
            sample.pred_instances = InstanceData(
                bboxes=gts.bboxes, labels=labels, scores=torch.ones(len(labels))
            )
        return samples


class Listed:
    """A data set whose pictures know their place; some have no boxes."""

    def __init__(self, boxes: list[int]) -> None:
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> dict:
        sample = DetDataSample(metainfo=dict(place=index))
        number = self.boxes[index]
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(number, 4), labels=torch.zeros(number, dtype=torch.long)
        )
        return dict(inputs=torch.zeros(3, 8, 8, dtype=torch.uint8), data_samples=sample)


class TestBatch:
    def places(self, boxes: list[int], number: int) -> list[int]:
        return [sample.place for sample in load(Listed(boxes), number)['data_samples']]

    def test_pictures_come_from_all_over_and_no_one_twice(self):
        assert self.places([1] * 100, 4) == [0, 25, 50, 75]
        assert sorted(self.places([1] * 3, 8)) == [0, 1, 2]

    def test_neighbours_stand_in_for_pictures_without_boxes(self):
        assert self.places([0, 1] * 50, 4) == [25, 75, 1, 51]

    def test_without_any_box_there_is_nothing_to_learn(self):
        with pytest.raises(gfl_det.errors.DataError, match='training set has boxes'):
            load(Listed([0] * 5), 2)


class TestScore:
    def batch(self, examples: Examples) -> dict:
        samples = []
        for boxes, labels in zip(examples.boxes, examples.labels):
            sample = DetDataSample()
            sample.gt_instances = InstanceData(
                bboxes=torch.from_numpy(boxes), labels=torch.from_numpy(labels)
            )
            samples.append(sample)
        return dict(inputs=[], data_samples=samples)

    def test_gts_are_perfect(self):
        assert score(Echo(), self.batch(scenes(4))) == (1.0, 1.0)

    def test_one_label_for_all_is_right_about_the_boxes_alone(self):
        ap, any_class = score(Echo(0), self.batch(scenes(4)))
        assert any_class == 1.0
        assert 0 < ap < 0.6


@pytest.fixture
def cfg_file(tmp_path) -> Path:
    """A tiny detector on scenes, as a config file."""
    examples = scenes(24)
    (tmp_path / 'train').mkdir()
    images, annotations = [], []
    for i, picture in enumerate(examples.pictures):
        cv2.imwrite(str(tmp_path / 'train' / f'{i}.png'), picture)
        images.append(dict(id=i, file_name=f'{i}.png', width=SIDE, height=SIDE))
        for (x1, y1, x2, y2), label in zip(examples.boxes[i].tolist(), examples.labels[i].tolist()):
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=i,
                    category_id=label,
                    iscrowd=0,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                )
            )
    categories = [dict(id=0, name='red'), dict(id=1, name='blue')]
    (tmp_path / 'annotations').mkdir()
    content = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'annotations' / 'train.json').write_text(json.dumps(content))
    cfg = gfl_det.get_config('gfl_r18_fpn_digits')
    gfl_det.utils.config.override(
        cfg,
        {
            'data_root': f'{tmp_path}/',
            'model.backbone.stem_channels': 8,
            'model.backbone.base_channels': 8,
            'model.neck.in_channels': [16, 32, 64],
            'model.neck.out_channels': 16,
            'model.bbox_head.num_classes': 2,
            'model.bbox_head.in_channels': 16,
            'model.bbox_head.feat_channels': 16,
            'model.bbox_head.stacked_convs': 1,
            'train_dataloader.dataset.metainfo.classes': ('red', 'blue'),
            'train_dataloader.dataset.pipeline.2.scale': (SIDE, SIDE),
            'optim_wrapper.optimizer.lr': 0.02,
        },
    )
    path = tmp_path / 'tiny.py'
    cfg.dump(path)
    return path


def run(path: Path, *words: object) -> tuple[int, dict]:
    out = path.with_suffix('.json')
    status = sanity.run(sanity.parse_arguments([str(path), '--json', str(out), *map(str, words)]))
    return status, json.loads(out.read_text())


def spoil(path: Path, change) -> None:
    annotations = path.parent / 'annotations' / 'train.json'
    content = json.loads(annotations.read_text())
    change(content['annotations'])
    annotations.write_text(json.dumps(content))


def parts(outcome: dict) -> set[str]:
    return {part for part, _ in outcome['suspects']}


class TestTool:
    def test_a_config_that_overfits(self, cfg_file):
        done = run_tool('sanity', cfg_file, '--images', 4, '--json', cfg_file.with_suffix('.json'))
        assert done.returncode == 0, done.stdout + done.stderr
        assert 'OVERFITTED: the loss fell by' in done.stdout
        found = json.loads(cfg_file.with_suffix('.json').read_text())
        assert found['suspects'] == []
        first, last = found['curve']['losses'][0]['loss'], found['curve']['losses'][-1]['loss']
        assert last < 0.1 * first
        assert found['curve']['scores'][0] >= 0.9

    def test_shuffled_labels(self, cfg_file):
        def shuffle(annotations: list[dict]) -> None:
            labels = np.random.default_rng(3).permutation([e['category_id'] for e in annotations])
            for entry, label in zip(annotations, labels.tolist()):
                entry['category_id'] = label

        spoil(cfg_file, shuffle)
        status, found = run(cfg_file, '--images', 4, '--steps', 5)
        assert status == 1
        assert 'labels' in parts(found)

    def test_corners_in_the_place_of_sides(self, cfg_file):
        def mix_up(annotations: list[dict]) -> None:
            for entry in annotations:
                x, y, width, height = entry['bbox']
                entry['bbox'] = [x, y, x + width, y + height]

        spoil(cfg_file, mix_up)
        status, found = run(cfg_file, '--images', 4, '--steps', 5)
        assert status == 1
        assert any('corners' in reason for part, reason in found['suspects'] if part == 'boxes')

    @pytest.mark.parametrize(
        ('rate', 'words'), [(0.0, 'it is 0'), (1e-7, 'too low'), (1e4, 'too high')]
    )
    def test_a_wrong_learning_rate(self, cfg_file, rate, words):
        option = f'optim_wrapper.optimizer.lr={rate}'
        status, found = run(cfg_file, '--images', 2, '--steps', 20, '--cfg-options', option)
        assert status == 1
        assert [part for part, reason in found['suspects'] if words in reason] == ['learning rate']
        assert Suspect(*found['suspects'][0]).part == 'learning rate'

    def test_classes_that_do_not_fit_stop_it(self, cfg_file):
        option = 'model.bbox_head.num_classes=7'
        with pytest.raises(gfl_det.errors.ConfigError, match='num_classes is 7'):
            run(cfg_file, '--cfg-options', option)


def test_the_config_reads_back(cfg_file):
    assert Config.fromfile(cfg_file).model.backbone.base_channels == 8
