"""gfl-det what-to-label: the list, near copies, the contact sheet, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest

from gfl_det.cli.main import main
from tests.helpers.inferring import CLASSES, write_checkpoint, write_images

FIELDS = {
    'rank',
    'image',
    'gain',
    'value',
    'expected_error_scores',
    'expected_error_edges',
    'objects',
    'nearest',
    'similarity',
}


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    """A checkpoint and five pictures, of which the first has three near copies more."""
    folder = tmp_path_factory.mktemp('to_label')
    write_checkpoint(folder)
    write_images(folder / 'img', 5)
    first = cv2.imread(str(folder / 'img' / '1.png'))
    for number in range(3):
        brighter = cv2.add(first, (1.0 + number,) * 3)
        cv2.imwrite(str(folder / 'img' / f'copy{number}.png'), brighter)
    return folder


def choose(folder: Path, out: Path, *words: str, source: str = 'epoch_1.pth') -> list[dict]:
    quiet = ('--quiet', '--device', 'cpu')
    main(['what-to-label', str(folder / source), *words, '--out', str(out), *quiet])
    return json.loads(out.read_text())


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(['what-to-label', *words])
    assert caught.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.count('\n') == 0, error
    return error


def is_copy(entry: dict) -> bool:
    return 'copy' in entry['image'] or entry['image'].endswith('/1.png')


def test_list_and_sheet_of_a_checkpoint(files, tmp_path, capsys) -> None:
    sheet = tmp_path / 'sheet.jpg'
    found = choose(files, tmp_path / 'a.json', f'{files}/img', '--sheet', str(sheet))
    printed = capsys.readouterr().out
    assert 'a.json (8 of 8 pictures)' in printed
    assert str(sheet) in printed
    assert [each['rank'] for each in found] == list(range(1, 9))
    assert all(set(each) == FIELDS for each in found)
    assert len({each['image'] for each in found}) == 8
    assert sum(is_copy(each) for each in found[:5]) == 1
    assert all(each['similarity'] > 0.5 for each in found[5:])
    assert all(is_copy({'image': each['nearest']}) for each in found[5:])
    assert found[0]['nearest'] is None
    gains = [each['gain'] for each in found]
    assert gains == sorted(gains, reverse=True)
    for each in found:
        both = each['expected_error_scores'] + each['expected_error_edges']
        assert each['value'] == pytest.approx(both, abs=2e-6)
        assert each['expected_error_edges'] > 0
    picture = cv2.imread(str(sheet))
    assert picture.shape[0] > 2 * 330  # two rows of 440 x 330 px
    assert picture.shape[1] > 4 * 440


def test_batches_change_nothing(files, tmp_path) -> None:
    one = choose(files, tmp_path / 'a.json', f'{files}/img')
    several = choose(files, tmp_path / 'b.json', f'{files}/img', '--batch-size', '4')
    assert [each['image'] for each in one] == [each['image'] for each in several]
    first = choose(files, tmp_path / 'c.json', f'{files}/img', '--number', '3')
    assert [each['image'] for each in first] == [each['image'] for each in one[:3]]


def test_results_give_the_same_errors_and_know_near_copies(files, tmp_path) -> None:
    checkpoint, images = str(files / 'epoch_1.pth'), f'{files}/img'
    results = str(tmp_path / 'found.json')
    main(['infer', checkpoint, images, '--out', results, '--quiet', '--device', 'cpu'])
    sheet = tmp_path / 'sheet.png'
    saved = choose(
        tmp_path, tmp_path / 'a.json', images, '--sheet', str(sheet), source='found.json'
    )
    run = choose(files, tmp_path / 'b.json', images)
    values = {each['image']: each['value'] for each in run}
    for each in saved:
        assert each['value'] == pytest.approx(values[each['image']], abs=1e-4)
    assert sum(is_copy(each) for each in saved[:5]) == 1
    assert cv2.imread(str(sheet)) is not None


def test_labelled_pictures_are_not_listed_nor_their_copies_early(files, tmp_path, capsys) -> None:
    dataset = dict(
        images=[dict(id=1, file_name='1.png', width=128, height=96)],
        categories=[dict(id=n, name=name) for n, name in enumerate(CLASSES)],
        annotations=[],
    )
    labels = tmp_path / 'labels.json'
    labels.write_text(json.dumps(dataset))
    words = (f'{files}/img', '--labelled')
    listed = choose(files, tmp_path / 'a.json', *words, str(labels))
    assert len(listed) == 7
    assert not any(is_copy(each) for each in listed[:4])
    assert listed[4]['nearest'].endswith('/1.png')
    folder = tmp_path / 'labelled'
    folder.mkdir()
    shutil.copy(files / 'img' / '1.png', folder / 'other.png')
    elsewhere = choose(files, tmp_path / 'b.json', *words, str(folder))
    assert len(elsewhere) == 8
    assert not any(is_copy(each) for each in elsewhere[:4])
    assert all(each['nearest'].endswith('other.png') for each in elsewhere[4:5])
    capsys.readouterr()
    out = ('--out', str(tmp_path / 'c.json'), '--device', 'cpu')
    given = (str(files / 'epoch_1.pth'), *words)
    assert 'All 8 images have labels' in refused(capsys, *given, f'{files}/img', *out)
    labels.write_text(json.dumps({**dataset, 'categories': [dict(id=1, name='cat')]}))
    assert "labels.json has no class named ['0', '1'," in refused(capsys, *given, str(labels), *out)
    dataset['images'][0]['file_name'] = 'x.png'
    labels.write_text(json.dumps(dataset))
    assert 'None of the 1 images' in refused(capsys, *given, str(labels), *out)


def test_one_picture_without_a_detection(files, tmp_path, capsys) -> None:
    (tmp_path / 'found.json').write_text('[]')
    one = str(files / 'img' / '2.png')
    sheet = tmp_path / 'sheet.png'
    (entry,) = choose(
        tmp_path, tmp_path / 'a.json', one, '--sheet', str(sheet), source='found.json'
    )
    assert (entry['value'], entry['objects'], entry['gain']) == (0, 0, 1)
    assert 'found.json gives no detection from a score of 0.2' in capsys.readouterr().err
    assert cv2.imread(str(sheet)).shape[1] < 500


def test_what_does_not_belong_is_one_sentence(files, tmp_path, capsys) -> None:
    checkpoint, images = str(files / 'epoch_1.pth'), f'{files}/img'
    out = ('--out', str(tmp_path / 'out.json'), '--device', 'cpu', '--quiet')
    empty = tmp_path / 'empty'
    empty.mkdir()
    assert f'{empty} is empty' in refused(capsys, checkpoint, str(empty), *out)
    assert 'absent does not exist' in refused(capsys, checkpoint, 'absent', *out)
    assert 'x.mp4 is a video' in refused(capsys, checkpoint, _touch(tmp_path / 'x.mp4'), *out)
    box = dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9], score=0.5, file_name='1.png')
    whole = dict(box, edge_std=[1, 1, 1, 1])
    results = tmp_path / 'found.json'

    def say(entry: dict, *words: str) -> str:
        results.write_text(json.dumps([entry]))
        return refused(capsys, str(results), images, *words, *out)

    assert 'found.json has no edge_std' in say(box)
    assert 'found.json has 9.png' in say(dict(whole, file_name='9.png'))
    assert 'does not name its images' in say({key: whole[key] for key in whole if key[:2] != 'fi'})
    assert '--calibrator' in say(whole, '--calibrator', 'map.json')
    assert '"edge_std" is not 4 finite numbers' in say(dict(whole, edge_std=[1]))
    assert 'category_id' in say(dict(whole, category_id=[1]))
    results.write_text('[]')
    assert 'is empty' in refused(capsys, str(results), str(empty), *out)
    assert not (tmp_path / 'out.json').exists()
    assert 'out.txt must end in .json' in refused(capsys, checkpoint, images, '--out', 'out.txt')
    sheet = ('--sheet', str(tmp_path / 'sheet.pdf'))
    assert 'sheet.pdf must end in' in refused(capsys, checkpoint, images, *out, *sheet)


def test_nothing_is_overwritten(files, tmp_path, capsys) -> None:
    out, sheet = _touch(tmp_path / 'a.json'), _touch(tmp_path / 'a.jpg')
    words = (str(files / 'epoch_1.pth'), f'{files}/img')
    assert 'a.json exists' in refused(capsys, *words, '--out', out)
    other = str(tmp_path / 'b.json')
    assert 'a.jpg exists' in refused(capsys, *words, '--out', other, '--sheet', sheet)
    assert Path(out).read_bytes() == b''
    assert not Path(other).exists()


def test_a_picture_that_cannot_be_read_is_named_and_left_out(files, tmp_path, capsys) -> None:
    for number in (2, 3):
        shutil.copy(files / 'img' / f'{number}.png', tmp_path / f'{number}.png')
    (tmp_path / 'broken.png').write_bytes(b'no image')
    found = choose(files, tmp_path / 'a.json', str(tmp_path))
    assert [Path(each['image']).name for each in found if 'broken' in each['image']] == []
    assert len(found) == 2
    assert 'broken.png' in capsys.readouterr().err


def _touch(path: Path) -> str:
    path.write_bytes(b'')
    return str(path)
