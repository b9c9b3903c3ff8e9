"""The forms results leave in: dicts, COCO JSON as pycocotools reads it, tables."""

from __future__ import annotations

import builtins
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools.coco import COCO

from gfl_det.errors import DataError, SetupError
from gfl_det.inference.results import ImageResult, Results
from gfl_det.ops.intervals import SIDES

CLASSES = ('cat', 'dog')


def one(source: str = 'img/a.png', number: int = 2, **fields) -> ImageResult:
    """Boxes 10 px wide and 20 px high at x = 0, 1, ...; classes in turns."""
    left = torch.arange(number, dtype=torch.float32)
    boxes = torch.stack([left, left + 5, left + 10, left + 25], dim=1)
    instances = InstanceData(
        bboxes=boxes,
        scores=torch.linspace(0.75, 0.25, number) if number > 1 else torch.full((number,), 0.75),
        labels=torch.arange(number) % 2,
        raw_scores=torch.full((number,), 0.5),
        edge_std=torch.full((number, 4), 2.0),
        edge_low=boxes - torch.tensor([1.0, 2.0, 3.0, 4.0]),
        edge_high=boxes + 4,
        edge_entropy=torch.ones(number, 4),
    )
    return ImageResult(source, (60, 80), instances, CLASSES, level=0.9, **fields)


FAILED = ImageResult('torn.png', error='torn.png is not an image.')


def test_a_dict_holds_all_and_is_json() -> None:
    content = json.loads(json.dumps(one(frame=3).to_dict()))
    assert content['source'] == 'img/a.png'
    assert (content['height'], content['width'], content['frame']) == (60, 80, 3)
    assert content['level'] == 0.9
    first = content['detections'][0]
    assert first == {
        'bbox': [0, 5, 10, 25],
        'label': 0,
        'score': 0.75,
        'class': 'cat',
        'raw_score': 0.5,
        'edge_std': [2, 2, 2, 2],
        'edge_low': [-1, 3, 7, 21],
        'edge_high': [4, 9, 14, 29],
        'edge_entropy': [1, 1, 1, 1],
    }
    assert FAILED.to_dict()['error'] == 'torn.png is not an image.'
    assert FAILED.to_dict()['detections'] == []


def test_coco_results_load_with_the_ids_of_a_data_set(tmp_path) -> None:
    annotations = dict(
        images=[dict(id=70, file_name='b.png'), dict(id=7, file_name='img/a.png')],
        categories=[dict(id=30, name='dog'), dict(id=20, name='cat')],
        annotations=[],
        info={},
    )
    path = tmp_path / 'out' / 'results.json'
    Results([one('/data/img/a.png'), FAILED, one('other/b.png', 1)]).save(path, annotations)
    gts = COCO()
    gts.dataset = annotations
    gts.createIndex()
    loaded = gts.loadRes(str(path))
    found = [loaded.anns[key] for key in sorted(loaded.anns)]
    assert [(each['image_id'], each['category_id']) for each in found] == [
        (7, 20),
        (7, 30),
        (70, 20),
    ]
    assert found[1]['bbox'] == [1, 6, 10, 20]
    assert found[1]['area'] == 200
    assert found[1]['edge_low'] == [0, 4, 8, 22]


def test_scores_of_all_classes_leave_under_the_ids_and_names_of_the_classes() -> None:
    result = one()
    result.instances.class_scores = torch.tensor([[0.75, 0.5], [0.125, 0.25]])
    assert json.loads(json.dumps(result.to_dict()))['detections'][1]['class_scores'] == [
        0.125,
        0.25,
    ]
    assert [each['class_scores'] for each in result.to_coco(1, [20, 30])] == [
        {'20': 0.75, '30': 0.5},
        {'20': 0.125, '30': 0.25},
    ]
    assert Results([result]).to_coco()[0]['class_scores'] == {'1': 0.75, '2': 0.5}
    assert result.compact().instances.class_scores.shape == (2, 2)
    table = pytest.importorskip('pandas') and result.to_pandas()
    assert list(table['score of dog']) == [0.5, 0.25]
    assert not any(name.startswith('score of') for name in one().to_pandas().columns)


def test_without_a_data_set_images_count_from_1() -> None:
    entries = Results([one(), FAILED, one('b.png', 1)]).to_coco()
    assert [(each['image_id'], each['category_id']) for each in entries] == [(1, 1), (1, 2), (3, 1)]
    assert entries[-1]['file_name'] == 'b.png'


@pytest.mark.parametrize(
    ('images', 'categories', 'match'),
    [
        ([dict(id=1, file_name='x.png')], ['cat', 'dog'], r"no image 'img/a\.png'"),
        ([dict(id=1, file_name='a.png')], ['cat'], "no class 'dog'"),
        ([dict(id=n, file_name='a.png') for n in (1, 2)], ['cat', 'dog'], 'two of the image'),
    ],
)
def test_ids_that_are_not_there_are_said(images, categories, match) -> None:
    named = [dict(id=n, name=name) for n, name in enumerate(categories)]
    with pytest.raises(DataError, match=match):
        Results([one()]).to_coco(dict(images=images, categories=named))


@pytest.mark.parametrize(
    'image',
    [
        dict(file_name=r'C:\pictures\a.png'),
        dict(file_name='/data/local-files/?d=pictures/a.png'),
        dict(file_name='pictures%2Fa.png'),
        dict(coco_url='http://images.cocodataset.org/val2017/a.png'),
    ],
)
def test_names_of_other_machines_are_found_as_the_data_set_finds_them(image) -> None:
    annotations = dict(
        images=[dict(id='x', **image), dict(id='y', file_name='b.png')],
        categories=[dict(id=n, name=name) for n, name in enumerate(CLASSES)],
    )
    entries = Results([one(), one('b.png', 1)]).to_coco(annotations)
    assert [each['image_id'] for each in entries] == ['x', 'x', 'y']


def test_two_inputs_of_one_image_id_are_refused_and_nothing_is_written(tmp_path) -> None:
    annotations = dict(
        images=[dict(id=7, file_name='a.png')],
        categories=[dict(id=n, name=name) for n, name in enumerate(CLASSES)],
    )
    path = tmp_path / 'results.json'
    with pytest.raises(DataError, match=r'x/a\.png and y/a\.png .* image 7 '):
        Results([one('x/a.png'), one('y/a.png')]).save(path, annotations)
    assert not path.exists()
    assert len(Results([one('x/a.png')]).to_coco(annotations)) == 2


def test_a_score_cut_keeps_the_fields() -> None:
    kept = one(number=5).above(0.5)
    assert kept.instances.scores.tolist() == [0.75, 0.625, 0.5]
    assert kept.instances.edge_low.shape == (3, 4)
    assert FAILED.above(0.5) is FAILED


def test_a_compact_result_lacks_what_is_large() -> None:
    whole = one(image=np.zeros((60, 80, 3), np.uint8))
    for name in ('edge_logits', 'bin_widths', 'prior_centres'):
        whole.instances[name] = torch.zeros(2, 4)
    light = whole.compact()
    assert light.image is None
    assert light.to_dict() == whole.to_dict()
    assert 'edge_low' in light.instances
    assert not {'edge_logits', 'bin_widths', 'prior_centres'} & set(light.instances.keys())
    assert FAILED.compact().to_dict() == FAILED.to_dict()


def test_results_are_a_sequence() -> None:
    results = Results([one(), FAILED, one('b.png')])
    assert len(results) == 3
    assert results[1] is FAILED
    assert [each.source for each in results[1:]] == ['torn.png', 'b.png']
    assert results.failures == [FAILED]
    assert one('v.mp4', frame=4).name == 'v.mp4#4'


def test_a_table_has_a_row_a_detection() -> None:
    pytest.importorskip('pandas', reason='the extra pandas is not installed')
    table = Results([one(), FAILED, one('b.png', 1)]).to_pandas()
    assert list(table['source']) == ['img/a.png', 'img/a.png', 'b.png']
    assert list(table['class']) == ['cat', 'dog', 'cat']
    assert list(table['left']) == [0, 1, 0]
    assert list(table['bottom_low']) == [21, 22, 21]
    assert list(one().to_pandas()['top_high']) == [9, 10]
    empty = Results([FAILED]).to_pandas()
    assert len(empty) == 0
    assert {'source', 'score', 'left'} <= set(empty.columns)


def test_without_pandas_the_extra_is_named(monkeypatch) -> None:
    real = builtins.__import__

    def fake(name, *rest):
        if name == 'pandas':
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, '__import__', fake)
    with pytest.raises(SetupError, match=r'pip install "gfl_det\[pandas\]"'):
        one().to_pandas()


def test_a_file_that_cannot_be_written_is_said(tmp_path) -> None:
    with pytest.raises(DataError, match=r'must end in \.json'):
        Results([one()]).save(tmp_path / 'out.txt')
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot be written'):
        Results([one()]).save(tmp_path / 'file' / 'out.json')


def test_results_print_as_tables() -> None:
    results = Results([one(), FAILED, one('b<i>.png', 30)])
    lines = str(one()).splitlines()
    assert lines[0] == 'img/a.png: 2 boxes: cat (0.75), dog (0.25)'
    assert lines[1].split() == [
        'class',
        'score',
        *SIDES,
        *(word for s in SIDES for word in (s, '+-')),
    ]
    assert lines[2].split() == ['cat', '0.750', '0.0', '5.0', '10.0', '25.0', *['2.0'] * 4]
    assert len({len(line) for line in lines[1:]}) == 1
    assert str(one(number=30)).splitlines()[-1] == '... and 10 more'
    assert str(FAILED) == 'torn.png: torn.png is not an image.'
    text = str(results).splitlines()
    assert text[0] == '3 images, 1 unread, 32 boxes: cat (16), dog (16)'
    assert text[2].split() == ['img/a.png', '80', 'x', '60', '2', '0.750']
    assert text[3].split() == ['torn.png', 'unread', '0']
    assert repr(results) == str(results)
    assert str(Results()) == '0 images, 0 boxes'


def test_notebooks_get_tables_whose_names_are_escaped() -> None:
    page = Results([one('b<i>.png'), FAILED])._repr_html_()
    assert 'b&lt;i&gt;.png' in page
    assert page.count('<tr>') == 3
    assert one(number=30)._repr_html_().count('<tr>') == 21
    assert '... and 10 more' in one(number=30)._repr_html_()
    assert FAILED._repr_html_() == '<p>torn.png: torn.png is not an image.</p>'


def test_a_result_is_a_sequence_of_detections() -> None:
    result = one(number=5)
    assert [each['score'] for each in result] == result.instances.scores.tolist()
    assert result[-1] == result.to_dict()['detections'][-1]
    assert len(result[1:3]) == 2
    assert result[[4, 0]].instances.labels.tolist() == [0, 0]
    chosen = result[result.instances.labels == 1]
    assert [each['class'] for each in chosen] == ['dog', 'dog']
    assert (chosen.size, chosen.classes, chosen.level) == (result.size, CLASSES, 0.9)
    assert len(result[[]]) == len(FAILED[:3]) == 0
    with pytest.raises(IndexError):
        result[5]
    assert result.pred_instances is result.instances


def test_a_filter_takes_scores_and_names() -> None:
    result = one(number=5)
    assert [each['class'] for each in result.filter(0.5)] == ['cat', 'dog', 'cat']
    assert [each['class'] for each in result.filter(0.5, 'dog')] == ['dog']
    assert len(result.filter(classes=iter(['dog', 'cat']))) == 5
    assert FAILED.filter(0.5, 'dog') is FAILED
    assert [len(each) for each in Results([result, FAILED, one()]).filter(0.5, iter(['cat']))] == [
        2,
        0,
        1,
    ]
    with pytest.raises(DataError, match="class 'cow': the detector knows cat, dog"):
        result.filter(classes='cow')
    with pytest.raises(DataError, match="class '7'"):
        Results([result]).filter(classes=7)


def test_pictures_are_drawn_from_what_was_kept_or_from_the_file(tmp_path) -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    picture = one(image=pixels).plot(0.3)
    assert np.asarray(picture).any()
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), pixels)
    assert np.array_equal(np.asarray(one(str(path)).plot(0.3)), np.asarray(picture))
    assert np.asarray(one(image=pixels[..., 0]).plot(0.3)).shape == np.asarray(picture).shape
    results = Results([one(str(path)), FAILED, one('array 0', image=pixels)])
    written = results.save_images(tmp_path / 'drawn')
    assert [each.name for each in written] == ['a.jpg', 'array 0.jpg']
    assert len(results.plot()) == 2
    with pytest.raises(DataError, match=r'of v\.mp4#4 was not kept.*keep_images=True'):
        one('v.mp4', frame=4).plot()
    with pytest.raises(DataError, match=r'torn\.png is not an image'):
        FAILED.plot()


def test_supervision_takes_results() -> None:
    sv = pytest.importorskip('supervision')
    result = one(number=5)
    found = result.to_supervision()
    assert found.xyxy.tolist() == result.instances.bboxes.tolist()
    assert found.data['class_name'].tolist() == ['cat', 'dog', 'cat', 'dog', 'cat']
    assert found[found.confidence > 0.5].data['edge_std'].shape == (2, 4)
    theirs = sv.Detections.from_mmdetection(result)
    assert theirs.xyxy.tolist() == found.xyxy.tolist()
    assert theirs.class_id.tolist() == found.class_id.tolist()
    none = FAILED.to_supervision()
    assert len(none) == 0
    merged = sv.Detections.merge([found, none])
    assert len(merged) == 5
