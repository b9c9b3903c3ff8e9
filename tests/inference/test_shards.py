"""Shards of many images: what they hold, how their results are kept, and what an end costs."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from mmengine.structures import InstanceData
from pyarrow import parquet as pq

from gfl_det.cli.test import parse_arguments as parse_test
from gfl_det.cli.test import run as run_test
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import Detections, gts_of_table, read_annotations
from gfl_det.evaluation.evaluate import evaluate_detections
from gfl_det.evaluation.parts import evaluate_parts
from gfl_det.inference import shards as module
from gfl_det.inference.results import ImageResult, Results
from gfl_det.inference.shards import (
    ResultFolder,
    Shard,
    coco_results,
    list_shards,
    read_parts,
    read_shard,
)
from gfl_det.ops.intervals import SIDES
from tests.helpers.s3_server import serving

CLASSES = ('cat', 'dog')


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, 'w') as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


@pytest.fixture
def inputs(tmp_path):
    """A folder with seven files, a tar of two, and a table of four in two row groups."""
    folder = tmp_path / 'in'
    (folder / 'deep').mkdir(parents=True)
    for number in range(6):
        (folder / f'{number}.png').write_bytes(b'%d' % number)
    (folder / 'deep' / 'a.jpg').write_bytes(b'a')
    (folder / 'notes.md').write_text('no image')
    write_tar(folder / 'x.tar', {'k/1.png': b't1', 'k/1.json': b'{}', 'k/2.png': b't2'})
    table = pa.table({'path': list('pqrs'), 'bytes': [b'p', b'q', b'r', b's'], 'other': [1] * 4})
    pq.write_table(table, folder / 'y.parquet', row_group_size=2)
    return folder


def contents(shards):
    return [[(Path(name).name, content) for name, content in read_shard(each)] for each in shards]


class TestInputs:
    def test_a_folder_with_all_that_is_below(self, inputs):
        assert contents(list_shards([str(inputs)], 4)) == [
            [('0.png', b'0'), ('1.png', b'1'), ('2.png', b'2'), ('3.png', b'3')],
            [('4.png', b'4'), ('5.png', b'5'), ('a.jpg', b'a')],
            [('1.png', b't1'), ('2.png', b't2')],
            [('p', b'p'), ('q', b'q')],
            [('r', b'r'), ('s', b's')],
        ]

    def test_shards_do_not_depend_on_the_order_of_inputs(self, inputs):
        parts = [str(inputs / 'y.parquet'), str(inputs / '*.png'), str(inputs / 'x.tar')]
        assert list_shards(parts, 4) == list_shards(parts[::-1] + parts, 4)
        assert [len(each) for each in contents(list_shards(parts, 4))] == [4, 2, 2, 2, 2]

    def test_a_list_of_files(self, inputs, tmp_path):
        file = tmp_path / 'list.txt'
        file.write_text(f'{inputs}/3.png\n\n{inputs}/1.png\n{inputs}/absent.png\n')
        (found,) = contents(list_shards([str(file)], 9))
        assert found[:2] == [('1.png', b'1'), ('3.png', b'3')]
        assert 'absent.png cannot be read' in found[2][1]

    @pytest.mark.parametrize(
        ('table', 'expected'),
        [
            ({'image': [{'bytes': b'h', 'path': 'h.png'}]}, [('hf.parquet#0-0', b'h')]),
            ({'uri': ['IN/1.png']}, [('1.png', b'1')]),
        ],
    )
    def test_tables_of_other_columns(self, inputs, tmp_path, table, expected):
        table = {
            key: [each.replace('IN', str(inputs)) if isinstance(each, str) else each for each in v]
            for key, v in table.items()
        }
        pq.write_table(pa.table(table), tmp_path / 'hf.parquet')
        assert contents(list_shards([str(tmp_path / 'hf.parquet')], 9)) == [expected]

    def test_damage_is_a_reason_in_the_place_of_an_image(self, inputs):
        content = (inputs / 'x.tar').read_bytes()
        (inputs / 'x.tar').write_bytes(content[:700])
        pq.write_table(pa.table({'a': [1]}), inputs / 'y.parquet')
        *_, tar, table = contents(list_shards([str(inputs)], 99))
        assert 'x.tar cannot be read' in tar[-1][1]
        assert 'it has no column of path,' in table[0][1]

    @pytest.mark.parametrize('name', ['absent', 'empty', '*.gif'])
    def test_nothing_is_refused(self, tmp_path, name):
        (tmp_path / 'empty').mkdir()
        with pytest.raises(DataError, match='has no image'):
            list_shards([str(tmp_path / name)], 4)

    def test_what_is_no_table_is_named(self, inputs):
        (inputs / 'y.parquet').write_bytes(b'no')
        with pytest.raises(DataError, match=r'y\.parquet is not a Parquet file'):
            list_shards([str(inputs)], 4)

    def test_a_store_of_objects(self, inputs, monkeypatch):
        for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
            monkeypatch.setenv(name, 'none')
        files = [path for path in inputs.rglob('*') if path.is_file()]
        objects = {f'b/in/{path.relative_to(inputs)}': path.read_bytes() for path in files}
        with serving(objects) as options:
            found = list_shards([f's3://b/in{options}'], 4)
            assert contents(found)[2:] == contents(list_shards([str(inputs)], 4))[2:]
            assert sorted(c for s in contents(found)[:2] for _, c in s) == [
                b'0', b'1', b'2', b'3', b'4', b'5', b'a',
            ]  # fmt: skip
            (few,) = contents(list_shards([f's3://b/in/[1-3].png{options}'], 9))
            assert [content for _, content in few] == [b'1', b'2', b'3']
            (one,) = contents(list_shards([f's3://b/in/4.png{options}'], 9))
            assert one[0][1] == b'4'


def result(name: str, number: int, edges: bool = True, seed: int = 0) -> ImageResult:
    rng = torch.Generator().manual_seed(seed)
    found = InstanceData(
        bboxes=torch.rand(number, 4, generator=rng) * 100,
        scores=torch.rand(number, generator=rng),
        labels=torch.arange(number) % 2,
    )
    if edges:
        found.raw_scores = torch.rand(number, generator=rng)
        for kind in ('edge_std', 'edge_low', 'edge_high'):
            found[kind] = torch.rand(number, 4, generator=rng)
    return ImageResult(name, (48, 64), found, CLASSES)


RESULTS = [
    result('a/1.png', 3),
    ImageResult('a/2.png', error='a/2.png is torn.'),
    result('a/3.png', 0),
    result('a/4.png', 2, edges=False, seed=1),
]


class TestResults:
    def test_a_row_is_a_detection_bit_for_bit(self, tmp_path):
        folder = ResultFolder(tmp_path)
        counts = folder.commit(Shard(0, ('a',)), RESULTS)
        assert counts == (4, 5, 1)
        assert folder.counts(folder.parts()[0]) == counts
        table = pq.read_table(tmp_path / 'detections')
        assert table.column('image').to_pylist() == ['a/1.png'] * 3 + ['a/4.png'] * 2
        assert table.column('label').to_pylist() == ['cat', 'dog', 'cat', 'cat', 'dog']
        first = RESULTS[0].instances
        for place, side in enumerate(SIDES):
            values = table.column(f'edge_low_{side}').to_pylist()
            assert values[:3] == first.edge_low[:, place].tolist()
            assert values[3:] == [None, None]
        assert table.column('score_raw').to_pylist()[:3] == first.raw_scores.tolist()
        assert table.column('score').to_pylist()[:3] == first.scores.tolist()
        assert table.column('x2').to_pylist()[:3] == first.bboxes[:, 2].tolist()
        failures = pq.read_table(tmp_path / 'failures').to_pylist()
        assert failures == [{'image': 'a/2.png', 'reason': 'a/2.png is torn.'}]

    def test_other_programs_read_them(self, tmp_path):
        duckdb, pandas = pytest.importorskip('duckdb'), pytest.importorskip('pandas')
        folder = ResultFolder(tmp_path)
        folder.commit(Shard(0, ('a',)), RESULTS)
        folder.commit(Shard(1, ('b',)), [ImageResult('b.png', error='none')])
        query = f"select count(*), max(score) from '{tmp_path}/detections/*.parquet'"
        ((number, best),) = duckdb.sql(query).fetchall()
        frame = pandas.read_parquet(tmp_path / 'detections')
        assert (number, best) == (5, frame.score.max())
        assert frame.label.astype(str).tolist() == ['cat', 'dog', 'cat', 'cat', 'dog']

    def test_the_same_results_give_the_same_bytes(self, tmp_path):
        parts = []
        for name in ('one', 'two'):
            folder = ResultFolder(tmp_path / name)
            folder.commit(Shard(0, ('a',)), RESULTS)
            parts.append(folder.parts()[0].read_bytes())
        assert parts[0] == parts[1]

    def test_coco_results_are_those_of_the_images(self, tmp_path):
        folder = ResultFolder(tmp_path)
        folder.commit(Shard(0, ('a',)), RESULTS)
        annotations = dict(
            images=[dict(id=10 + n, file_name=f'{n}.png') for n in (1, 2, 3, 4)],
            categories=[dict(id=5, name='dog'), dict(id=7, name='cat')],
        )
        ours = coco_results(tmp_path, annotations)
        theirs = Results(RESULTS).to_coco(annotations)
        assert [(e['image_id'], e['category_id']) for e in ours] == [
            (e['image_id'], e['category_id']) for e in theirs
        ]
        np.testing.assert_allclose(
            [e['bbox'] for e in ours], [e['bbox'] for e in theirs], rtol=0, atol=1e-5
        )
        for left, right in zip(ours[:3], theirs[:3]):
            assert set(right) - {'edge_entropy', 'class'} <= set(left)
            assert left['edge_std'] == right['edge_std']
        with pytest.raises(DataError, match=r"no image 'a/1\.png'"):
            coco_results(tmp_path, {**annotations, 'images': annotations['images'][1:]})

    def test_they_are_judged_as_in_memory(self, tmp_path, capsys):
        folder = ResultFolder(tmp_path)
        images = [dict(id=30 - n, file_name=f'{n}.png', width=200, height=200) for n in range(8)]
        categories = [dict(id=5, name='dog'), dict(id=7, name='cat')]
        results = [result(f'in/{n}.png', 5, seed=n) for n in range(8)]
        entries = Results(results).to_coco(dict(images=images, categories=categories))
        annotations = [
            dict(id=n, image_id=e['image_id'], category_id=e['category_id'], bbox=e['bbox'])
            for n, e in enumerate(entries[::2], 1)
        ]
        for each in annotations:
            each['bbox'] = [*each['bbox'][:2], *(abs(side) + 20 for side in each['bbox'][2:])]
        labels = tmp_path / 'labels.json'
        labels.write_text(
            json.dumps(dict(images=images, categories=categories, annotations=annotations))
        )
        for number in range(4):
            folder.commit(Shard(number, ('a',)), results[2 * number : 2 * number + 2])
        table = read_annotations(labels)
        gts = gts_of_table(table)
        parts = list(read_parts(tmp_path, table))
        whole = Detections(*(np.concatenate(each) for each in zip(*parts)))
        ours = evaluate_parts(parts, gts)
        theirs = evaluate_detections(whole, gts)
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=0, atol=1e-9)
        run_test(parse_test(['--results', str(tmp_path), '--annotations', str(labels)]))
        assert f'{ours["AP"]:.4f}' in capsys.readouterr().out
        for number, settings in ((4, {}), (5, dict(error='torn'))):
            more = [replace(result(f'in/{number + 4}.png', 0), **settings)] if settings else []
            folder.commit(Shard(number, ('a',)), more)
        folder.start([Shard(number, ('a',)) for number in range(6)], {})
        folder.finish()
        images += [dict(id=60 + n, file_name=f'more{n}.png') for n in range(3)]
        labels.write_text(
            json.dumps(dict(images=images, categories=categories, annotations=annotations))
        )
        run_test(parse_test(['--results', str(tmp_path), '--annotations', str(labels)]))
        said = capsys.readouterr()
        assert '8 images were detected in, 11 are annotated' in said.out
        assert re.search(r'^classes +2$', said.out, re.M)
        assert 'the other 3 annotated images count as missed; 1 images could not' in said.err

    def test_options_without_effect_are_refused(self, tmp_path, capsys):
        words = ['--results', str(tmp_path), '--annotations', 'x.json']
        for option in (['--resamples', '9'], ['--classwise'], ['--out', 'x.json'], ['--tta']):
            with pytest.raises(SystemExit, match='2'):
                parse_test([*words, *option])
            assert f'--results DIR takes no {option[0]}' in capsys.readouterr().err


class TestCommitment:
    SHARDS = (Shard(0, ('a', 'b')), Shard(1, ('c',)), Shard(2, ('d.parquet',), 3))

    def test_the_same_command_goes_on_and_another_is_refused(self, tmp_path):
        folder = ResultFolder(tmp_path)
        assert folder.start(self.SHARDS, dict(threads=1)) == list(self.SHARDS)
        folder.commit(self.SHARDS[1], RESULTS)
        assert folder.start(self.SHARDS, dict(threads=1)) == [self.SHARDS[0], self.SHARDS[2]]
        with pytest.raises(DataError, match=r'another run \(threads differ\)'):
            folder.start(self.SHARDS, dict(threads=2))
        with pytest.raises(DataError, match=r'\(inputs, shards differ\)'):
            folder.start(self.SHARDS[:2], dict(threads=1))

    @pytest.mark.parametrize('calls', range(1, 5))
    def test_an_end_while_a_shard_is_written_leaves_it_undone(self, tmp_path, monkeypatch, calls):
        """The process ends at each sync and rename: what is there is whole, and marked last."""
        folder = ResultFolder(tmp_path)
        folder.start(self.SHARDS[:1], {})
        left = [calls]

        def ending(real):
            def call(*args):
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt
                return real(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, 'fsync', ending(os.fsync))
            patch.setattr(os, 'replace', ending(os.replace))
            with pytest.raises(KeyboardInterrupt):
                folder.commit(self.SHARDS[0], RESULTS)
        assert folder.start(self.SHARDS[:1], {}) == [self.SHARDS[0]]
        folder.commit(self.SHARDS[0], RESULTS)
        assert folder.start(self.SHARDS[:1], {}) == []
        assert folder.finish() == (4, 5, 1)
        assert len(pq.read_table(tmp_path / 'failures')) == 1

    def test_without_failures_there_is_an_empty_table_of_them(self, tmp_path):
        folder = ResultFolder(tmp_path)
        folder.start(self.SHARDS[:1], {})
        folder.commit(self.SHARDS[0], RESULTS[:1])
        for _ in range(2):
            assert folder.finish().failures == 0
            table = pq.read_table(tmp_path / 'failures')
            assert (table.column_names, len(table)) == (['image', 'reason'], 0)

    def test_the_manifest_tells_what_is_there(self, tmp_path):
        folder = ResultFolder(tmp_path)
        folder.start(self.SHARDS[:2], dict(threads=1))
        assert json.loads((tmp_path / 'manifest.json').read_text())['complete'] is False
        for shard in self.SHARDS[:2]:
            folder.commit(shard, RESULTS)
        folder.finish()
        manifest = folder.manifest()
        assert manifest['complete'] is True
        assert manifest['totals'] == dict(images=8, detections=10, failures=2)
        assert manifest['parts'] == {f'part-00000{n}.parquet': [4, 5, 1] for n in (0, 1)}
        assert manifest['schema'] == module.SCHEMA_VERSION

    def test_an_address_is_refused_before_it_becomes_a_folder(self):
        with pytest.raises(DataError, match='mount s3://bucket/out'):
            ResultFolder('s3://bucket/out')

    def test_a_folder_without_results_is_named(self, tmp_path):
        with pytest.raises(DataError, match='infer-many'):
            ResultFolder(tmp_path).parts()
