"""Own data by its path: the same pictures read from every format, and what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from gfl_det.datasets.formats.own_data import group_near_copies, read_own, split_groups, write_parts
from gfl_det.datasets.formats.pictures import OwnData
from gfl_det.datasets.table import read_table
from gfl_det.errors import DataError
from tests.helpers.own_data_files import (
    CLASSES,
    HEIGHT,
    SPLITS,
    WIDTH,
    boxes_of,
    coco_of,
    draw,
    voc_xml,
    write_coco,
    write_exported,
    write_voc,
    write_yolo,
)


def objects(data: OwnData, split: str) -> dict[str, list]:
    """Boxes by the name of the picture: class and xywh, as a table reads them from the file."""
    part = data.parts[split]
    table = read_table(part.file.read_bytes(), str(part.file))
    found: dict[str, list] = {Path(name).name: [] for name in table.file_names}
    for image, label, box in zip(table.image, table.label, table.boxes):
        name = Path(table.file_names[image]).name
        found[name].append((table.class_names[label], *np.round(box, 3).tolist()))
    for name in table.file_names:
        assert (part.folder / name).is_file()
    return {name: sorted(boxes) for name, boxes in found.items()}


def expected(split: str) -> dict[str, list]:
    return {
        f'{number:02}.png': sorted((CLASSES[label], *map(float, xywh)) for label, *xywh in boxes)
        for number in SPLITS[split]
        for boxes in [boxes_of(number)]
    }


WRITERS = {
    'coco': write_coco,
    'exported': write_exported,
    'yolo': write_yolo,
    'yolo by split': lambda root: write_yolo(root, split_first=True),
    'yolo folder': lambda root: write_yolo(root).parent,
    'voc': write_voc,
    'voc side by side': lambda root: write_voc(root, beside=True),
}


@pytest.mark.parametrize('write', WRITERS.values(), ids=list(WRITERS))
def test_every_format_gives_the_same_boxes_and_copies_no_picture(tmp_path, write) -> None:
    source = write(tmp_path / 'mine')
    before = sorted(path for path in (tmp_path / 'mine').rglob('*'))
    data = write_parts(read_own(source), tmp_path / 'out')
    assert data.classes == list(CLASSES)
    assert {split: objects(data, split) for split in SPLITS} == {s: expected(s) for s in SPLITS}
    assert sorted(path for path in (tmp_path / 'mine').rglob('*')) == before
    assert all(path.suffix == '.json' for path in (tmp_path / 'out').rglob('*'))


def test_a_coco_folder_is_read_where_it_is(tmp_path) -> None:
    root = write_coco(tmp_path)
    data = write_parts(read_own(root), tmp_path / 'out')
    assert [part.file for part in data.parts.values()] == [root / f'{each}.json' for each in SPLITS]
    assert not (tmp_path / 'out').exists()


def test_a_dummy_super_category_is_dropped_and_told_and_one_with_boxes_stays(tmp_path) -> None:
    root = write_exported(tmp_path)
    assert any('pets' in note for note in read_own(root).notes)
    file = root / 'train' / '_annotations.coco.json'
    content = json.loads(file.read_text())
    content['annotations'][0]['category_id'] = 0
    file.write_text(json.dumps(content))
    assert read_own(root).classes == ['pets', *CLASSES]


class TestYolo:
    def test_pictures_without_a_text_and_with_an_empty_one_are_background(self, tmp_path):
        path = write_yolo(tmp_path)
        (tmp_path / 'labels' / 'train' / '03.txt').write_text('\n')
        data = read_own(path)
        images = data.parts['train'].dataset['images']
        used = {each['image_id'] for each in data.parts['train'].dataset['annotations']}
        assert [Path(each['file_name']).stem for each in images if each['id'] not in used] == [
            '02',
            '03',
        ]
        assert any('2 pictures' in note and 'background' in note for note in data.notes)

    def test_an_outline_becomes_its_box(self, tmp_path):
        path = write_yolo(tmp_path)
        (tmp_path / 'labels' / 'train' / '00.txt').write_text('1 .25 .5 .75 .25 .5 .75')
        [entry] = [
            each
            for each in read_own(path).parts['train'].dataset['annotations']
            if each['image_id'] == 1
        ]
        box = [WIDTH / 4, HEIGHT / 4, WIDTH / 2, HEIGHT / 2]
        assert entry['bbox'] == box
        assert entry['category_id'] == 2

    def test_a_split_may_be_a_text_of_paths_or_several_folders(self, tmp_path):
        path = write_yolo(tmp_path, train=['images/train', 'images/val'], val='val.txt')
        names = [f'./images/test/{number:02}.png' for number in SPLITS['test']]
        (tmp_path / 'val.txt').write_text('\n'.join(names))
        data = read_own(path)
        assert len(data.parts['train'].dataset['images']) == len(SPLITS['train']) + len(
            SPLITS['val']
        )
        assert len(data.parts['val'].dataset['images']) == len(SPLITS['test'])

    def test_names_by_number_and_a_root(self, tmp_path, monkeypatch):
        path = write_yolo(tmp_path / 'set', names={'1': 'b', '0': 'a'})
        path.write_text(path.read_text().replace('"1"', '1').replace('"0"', '0'))
        moved = tmp_path / 'mine.yaml'
        moved.write_text(path.read_text().replace('{', '{"path": "set", ', 1))
        assert read_own(moved).classes == ['a', 'b']

    def test_a_turned_picture_has_the_size_that_is_decoded(self, tmp_path):
        path = write_yolo(tmp_path)
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6
        picture = tmp_path / 'images' / 'train' / '00.png'
        Image.open(picture).save(picture.with_suffix('.jpg'), exif=exif)
        picture.unlink()
        image = read_own(path).parts['train'].dataset['images'][0]
        assert (image['width'], image['height']) == (HEIGHT, WIDTH)
        assert cv2.imread(str(picture.with_suffix('.jpg'))).shape[:2] == (WIDTH, HEIGHT)

    @pytest.mark.parametrize(
        ('line', 'named'),
        [
            ('2 .5 .5 .1 .1', 'class 2'),
            ('0.5 .5 .5 .1 .1', 'class 0.5'),
            ('0 .5 .5 .1', '4 numbers'),
            ('0 .5 .5 .1 .1 .9', '6 numbers'),
            ('0 48 32 10 10', 'beyond the picture'),
            ('0 nan .5 .1 .1', 'beyond the picture'),
            ('cat .5 .5 .1 .1', 'row of numbers'),
        ],
    )
    def test_an_invalid_line_is_named(self, tmp_path, line, named):
        path = write_yolo(tmp_path)
        (tmp_path / 'labels' / 'train' / '01.txt').write_text(f'\n{line}')
        with pytest.raises(DataError, match=r'01\.txt, line 2') as caught:
            read_own(path)
        assert named in str(caught.value)

    @pytest.mark.parametrize(
        ('content', 'named'),
        [
            ('services: {web: 1}', '"train"'),
            ('train: images/train', '"names"'),
            ('train: [', 'YAML'),
            ('- 1', '"train"'),
            ('{train: nowhere, names: [a]}', 'nowhere'),
            ('{train: images/train, names: {1: a}}', '0 to 0'),
            ('{train: images/train, names: [a, a]}', 'twice'),
            ('{train: images/train, names: 3}', 'list'),
        ],
    )
    def test_a_yaml_that_is_no_data_set_gets_one_sentence(self, tmp_path, content, named):
        write_yolo(tmp_path)
        (tmp_path / 'data.yaml').write_text(content)
        with pytest.raises(DataError, match=r'data\.yaml') as caught:
            read_own(tmp_path / 'data.yaml')
        assert named in str(caught.value)
        assert '\n' not in str(caught.value)

    def test_labels_elsewhere_are_said_to_be_missing(self, tmp_path):
        path = write_yolo(tmp_path)
        shutil.rmtree(tmp_path / 'labels')
        with pytest.raises(DataError, match='labels'):
            read_own(path)

    @pytest.mark.parametrize('beside', [False, True])
    def test_labels_without_a_yaml_are_named(self, tmp_path, beside):
        path = write_yolo(tmp_path)
        path.unlink()
        if beside:
            shutil.copy(tmp_path / 'labels/train/00.txt', tmp_path / 'images/train/00.txt')
            shutil.rmtree(tmp_path / 'labels')
        with pytest.raises(DataError, match=r'no data\.yaml'):
            read_own(tmp_path)


class TestVoc:
    def test_without_lists_a_part_is_set_apart(self, tmp_path):
        data = read_own(write_voc(tmp_path, lists=False))
        counts = [len(part.dataset['images']) for part in data.parts.values()]
        assert sum(counts) == 11
        assert counts[1] == 2
        assert any('set apart' in note for note in data.notes)

    def test_difficult_objects_are_ignored(self, tmp_path):
        root = write_voc(tmp_path)
        xml = root / 'Annotations' / '00.xml'
        xml.write_text(voc_xml(0, '<difficult>1</difficult>'))
        data = write_parts(read_own(root), tmp_path / 'out')
        file = data.parts['train'].file
        table = read_table(file.read_bytes(), str(file))
        assert table.ignored.tolist() == [image == 0 for image in table.image]
        assert any('difficult' in note for note in data.notes)

    def test_a_folder_above_is_enough_and_two_sets_are_named(self, tmp_path):
        write_voc(tmp_path / 'VOC2007')
        assert read_own(tmp_path).kind == 'VOC'
        write_voc(tmp_path / 'VOC2012')
        with pytest.raises(DataError, match='VOC2012'):
            read_own(tmp_path)

    @pytest.mark.parametrize(
        ('content', 'named'),
        [
            ('<annotation>', 'XML'),
            ('', 'XML'),
            ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', 'entities'),
            ('<annotation><object><name>a</name></object></annotation>', 'object 1'),
            (voc_xml(0).replace('<xmin>', '<xmin>x'), 'object 1'),
            (voc_xml(0).replace('<name>', '<nom>').replace('</name>', '</nom>'), 'object 1'),
        ],
    )
    def test_an_invalid_xml_is_named(self, tmp_path, content, named):
        root = write_voc(tmp_path)
        (root / 'Annotations' / '00.xml').write_text(content)
        with pytest.raises(DataError, match=r'00\.xml') as caught:
            read_own(root)
        assert named in str(caught.value)

    def test_a_missing_picture_or_xml_is_named(self, tmp_path):
        root = write_voc(tmp_path)
        (root / 'JPEGImages' / '03.png').unlink()
        with pytest.raises(DataError, match=r'03\.xml has no picture'):
            read_own(root)
        (root / 'Annotations' / '03.xml').unlink()
        with pytest.raises(DataError, match=r'train\.txt .*03\.xml'):
            read_own(root)

    def test_boxes_are_read_as_they_stand(self, tmp_path):
        root = write_voc(tmp_path)
        xml = root / 'Annotations' / '02.xml'
        corners = '<xmin>1</xmin><ymin>2.5</ymin><xmax>11</xmax><ymax>22.5</ymax>'
        xml.write_text(
            f'<annotation><object><name>dog</name><bndbox>{corners}</bndbox></object></annotation>'
        )
        found = read_own(root).parts['train'].dataset['annotations']
        assert [1.0, 2.5, 10.0, 20.0] in [each['bbox'] for each in found]


class TestOneFile:
    def write(self, tmp_path: Path, folder: str) -> Path:
        numbers = range(11)
        for number in numbers:
            draw(tmp_path / folder / f'{number:02}.png', number)
        (tmp_path / 'labels.json').write_text(json.dumps(coco_of(numbers)))
        return tmp_path / 'labels.json'

    @pytest.mark.parametrize('folder', ['', 'images', 'labels', 'data'])
    def test_the_pictures_are_found(self, tmp_path, folder):
        data = read_own(self.write(tmp_path, folder))
        assert data.parts['train'].folder == tmp_path / folder

    def test_other_folders_are_asked_for_and_taken(self, tmp_path):
        file = self.write(tmp_path, 'elsewhere')
        with pytest.raises(DataError, match='--image-dir'):
            read_own(file)
        data = read_own(file, tmp_path / 'elsewhere')
        assert data.parts['val'].folder == tmp_path / 'elsewhere'

    def test_the_split_is_the_same_each_time_and_has_each_picture_once(self, tmp_path):
        file = self.write(tmp_path, '')
        first, second = read_own(file), read_own(file.parent)
        names = [
            [each['file_name'] for each in data.parts[split].dataset['images']]
            for data in (first, second)
            for split in ('train', 'val')
        ]
        assert names[:2] == names[2:]
        assert sorted(names[0] + names[1]) == [f'{number:02}.png' for number in range(11)]
        assert len(names[1]) == 2

    def test_boxes_follow_their_pictures(self, tmp_path):
        data = write_parts(read_own(self.write(tmp_path, '')), tmp_path / 'out')
        found = objects(data, 'train') | objects(data, 'val')
        assert found == expected('train') | expected('val') | expected('test')


class TestNearCopies:
    def picture(self, seed: int) -> np.ndarray:
        cells = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        return cv2.resize(cells, (192, 144), interpolation=cv2.INTER_CUBIC)

    def test_shifted_darker_and_compressed_copies_are_found_and_others_not(self, tmp_path):
        paths = []
        for seed in range(6):
            pixels = self.picture(seed)
            for name, variant in (
                ('a.png', pixels),
                ('b.png', np.roll(pixels, 1, 1)),
                ('c.jpg', (pixels * 0.8).astype(np.uint8)),
                ('d.png', cv2.resize(pixels, (96, 72), interpolation=cv2.INTER_AREA)),
            ):
                paths.append(tmp_path / f'{seed}{name}')
                cv2.imwrite(str(paths[-1]), variant)
        assert group_near_copies(paths) == [4 * seed for seed in range(6) for _ in range(4)]

    def test_flat_pictures_and_broken_ones_are_like_no_other(self, tmp_path):
        paths = [tmp_path / f'{number}.png' for number in range(3)]
        for path in paths[:2]:
            cv2.imwrite(str(path), np.full((64, 64, 3), 9, np.uint8))
        paths[2].write_bytes(b'no picture')
        assert group_near_copies(paths) == [0, 1, 2]

    def test_exported_copies_are_known_by_name(self, tmp_path):
        names = ['a_jpg.rf.0123456789abcdef.jpg', 'b.jpg', 'a_jpg.rf.fedcba9876543210.jpg']
        for seed, name in enumerate(names):
            cv2.imwrite(str(tmp_path / name), self.picture(seed))
        assert group_near_copies([tmp_path / name for name in names]) == [0, 1, 0]

    @pytest.mark.parametrize('seed', range(5))
    def test_groups_are_never_cut_and_the_share_is_near(self, seed):
        random = np.random.default_rng(seed)
        groups = np.sort(random.integers(0, 60, 200)).tolist()
        keys = [f'{number:03}' for number in range(200)]
        train, val = split_groups(groups, keys, 0.2, seed)
        assert not {groups[i] for i in train} & {groups[i] for i in val}
        assert sorted(train + val) == list(range(200))
        assert 30 <= len(val) <= 40

    def test_the_split_does_not_depend_on_the_order(self):
        keys = [f'{number:03}' for number in range(50)]
        _, val = split_groups(range(50), keys, 0.2, 0)
        _, turned = split_groups(range(50), keys[::-1], 0.2, 0)
        assert {keys[i] for i in val} == {keys[::-1][i] for i in turned}


class TestNoDataSet:
    @pytest.mark.parametrize('name', ['notes.txt', 'labels.csv', 'set.zip'])
    def test_a_file_of_another_kind(self, tmp_path, name):
        (tmp_path / name).write_text('x')
        with pytest.raises(DataError, match=name) as caught:
            read_own(tmp_path / name)
        assert 'YOLO' in str(caught.value)
        assert '\n' not in str(caught.value)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(DataError, match='does not exist'):
            read_own(tmp_path / 'nowhere')
        with pytest.raises(DataError, match='holds no data set'):
            read_own(tmp_path)

    def test_pictures_alone(self, tmp_path):
        draw(tmp_path / '00.png', 0)
        with pytest.raises(DataError, match='without labels'):
            read_own(tmp_path)

    def test_several_jsons(self, tmp_path):
        for name in ('a.json', 'b.json'):
            (tmp_path / name).write_text('{}')
        with pytest.raises(DataError, match=r'a\.json, b\.json'):
            read_own(tmp_path)

    @pytest.mark.parametrize(
        'content', ['[1]', '{"a": 1}', 'x', '{"images": [], "categories": []}']
    )
    def test_a_json_of_another_kind(self, tmp_path, content):
        (tmp_path / 'a.json').write_text(content)
        with pytest.raises(DataError, match=r'a\.json'):
            read_own(tmp_path / 'a.json')
