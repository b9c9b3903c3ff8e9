"""gfl-det find-label-errors: results and checkpoints, the page, decisions back to COCO, folds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from gfl_det.cli import train
from gfl_det.cli.main import main
from gfl_det.inference import folds
from gfl_det.inference.coverage import read_split
from gfl_det.inference.folds import seen_in_training
from tests.helpers import label_scenes
from tests.helpers.inferring import CLASSES, write_checkpoint, write_images
from tests.helpers.tiny_project import pets  # noqa: F401  # a fixture


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('labels')
    scene = label_scenes.make_scene()
    dataset, results = label_scenes.to_coco(scene)
    (folder / 'labels.json').write_text(json.dumps(dataset))
    (folder / 'found.json').write_text(json.dumps(results))
    (folder / 'img').mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'img' / '1.png'), cv2.GaussianBlur(noise, (0, 0), 2))
    for each in dataset['images'][1:]:
        (folder / 'img' / each['file_name']).symlink_to(folder / 'img' / '1.png')
    return folder


def find(folder: Path, source: str, out: Path, *words: str) -> None:
    words = ('--annotations', f'{folder}/labels.json', '--out', str(out), '--quiet', *words)
    main(['find-label-errors', *([source] if source else []), *words])


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(['find-label-errors', *words])
    assert caught.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.count('\n') == 0
    return error


def page_data(path: Path) -> dict:
    text = path.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def test_from_results_to_corrected_labels(files, tmp_path, capsys) -> None:
    out = tmp_path / 'suspects.json'
    find(files, f'{files}/found.json', out, '--images', f'{files}/img', '--pictures', '3')
    entries = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert str(out) in printed
    assert str(out.with_suffix('.html')) in printed
    kinds = [each['kind'] for each in entries if each['probability'] >= 0.5]
    assert sorted(kinds) == ['class', 'duplicate', 'loose', 'missing', 'spurious']
    data = page_data(out.with_suffix('.html'))
    assert json.loads(data['entries']) == entries
    drawn = [each for each in data['pictures'] if each]
    assert len(drawn) == 3
    assert drawn[0]['jpeg'].startswith('/9j/')

    decisions = [
        {**each, 'decision': 'take' if each['probability'] >= 0.5 else 'keep'} for each in entries
    ]
    content = dict(annotations='labels.json', sha256=data['sha256'], decisions=decisions)
    path, new = tmp_path / 'decisions.json', tmp_path / 'new.json'
    path.write_text(json.dumps(content))
    find(files, '', new, '--apply', str(path))
    assert '1 moved, 1 renamed, ' in capsys.readouterr().out
    corrected = json.loads(new.read_text())
    clean = label_scenes.make_scene(errors=False).gts
    assert len(corrected['annotations']) == len(clean.image)
    best = min(
        corrected['annotations'],
        key=lambda each: abs(np.array(each['bbox']) - clean.boxes[8]).sum(),
    )
    np.testing.assert_allclose(best['bbox'], clean.boxes[8], atol=8)
    assert 'exists' in refused(
        capsys,
        *('--apply', str(path), '--annotations', f'{files}/labels.json', '--out', str(new)),
    )
    assert corrected == json.loads(new.read_text())


def test_the_same_seed_gives_the_same_list(files, tmp_path) -> None:
    for name in ('a.json', 'b.json'):
        find(files, f'{files}/found.json', tmp_path / name, '--least', '0')
    assert (tmp_path / 'a.json').read_bytes() == (tmp_path / 'b.json').read_bytes()
    assert page_data(tmp_path / 'a.html')['pictures'][0] is None


def test_what_does_not_belong_is_one_sentence(files, tmp_path, capsys) -> None:
    labels = ('--annotations', f'{files}/labels.json')
    out = ('--out', str(tmp_path / 'out.json'))
    results = json.loads((files / 'found.json').read_text())

    def changed(name: str, **fields: object) -> str:
        path = tmp_path / name
        path.write_text(json.dumps([{**each, **fields} for each in results]))
        return str(path)

    without = tmp_path / 'plain.json'
    plain = [{key: each[key] for key in each if key != 'edge_std'} for each in results]
    without.write_text(json.dumps(plain))
    assert 'plain.json has no edge_std' in refused(capsys, str(without), *labels, *out)
    other = changed('classes.json', category_id=99)
    assert 'category_id [99]' in refused(capsys, other, *labels, *out)
    negative = changed('std.json', edge_std=[1.0, 1.0, -1.0, 1.0])
    sentence = refused(capsys, negative, *labels, *out)
    assert 'std.json: entry 0 has the edge_std [1.0, 1.0, -1.0, 1.0]' in sentence
    absent = refused(capsys, str(tmp_path / 'no.json'), *labels, *out)
    assert absent.startswith(f'error: {tmp_path}/no.json cannot be read')
    bare = tmp_path / 'bare.json'
    dataset = json.loads((files / 'labels.json').read_text())
    bare.write_text(json.dumps(dataset | dict(annotations=[])))
    found = str(files / 'found.json')
    assert 'bare.json has no labels' in refused(capsys, found, '--annotations', str(bare), *out)
    elsewhere = changed('images.json', image_id='x')
    assert "image_id ['x']" in refused(capsys, elsewhere, *labels, *out)
    empty = tmp_path / 'empty'
    empty.mkdir()
    found = str(files / 'found.json')
    sentence = refused(capsys, found, *labels, *out, '--images', str(empty))
    assert '60 of 60 images' in sentence
    assert 'out.txt must end in .json' in refused(capsys, found, *labels, '--out', 'out.txt')
    assert '--images' in refused(capsys, 'some.pth', *labels, *out)
    for taken in (f'{files}/labels.json', found):
        sentence = refused(capsys, found, *labels, '--out', taken)
        assert f'{taken} is an input of this command' in sentence
    assert json.loads((files / 'found.json').read_text()) == results
    assert not (tmp_path / 'out.json').exists()
    odd = tmp_path / 'odd.json'
    odd.write_text(json.dumps(dict(sha256='0', decisions=[])))
    assert 'another annotation file' in refused(capsys, '--apply', str(odd), *labels, *out)


def test_a_checkpoint_is_run_without_suppression(tmp_path, capsys) -> None:
    checkpoint = write_checkpoint(tmp_path)
    write_images(tmp_path / 'img', 2)
    content = dict(
        images=[dict(id=n, file_name=f'{n}.png', width=128, height=96) for n in (2, 1)],
        categories=[dict(id=n + 1, name=name) for n, name in enumerate((*CLASSES[::-1], 'x'))],
        annotations=[dict(id=1, image_id=1, category_id=11, bbox=[5, 5, 40, 40])],
    )
    (tmp_path / 'labels.json').write_text(json.dumps(content))
    out, images = tmp_path / 'out.json', str(tmp_path / 'img')
    find(tmp_path, str(checkpoint), out, '--images', images, '--least', '0', '--device', 'cpu')
    kinds = {each['kind'] for each in json.loads(out.read_text())}
    assert 'missing' in kinds
    assert 'warning' not in capsys.readouterr().err


def test_splits_that_number_their_images_alike_are_told_apart(tmp_path) -> None:
    """train/1.png is not val/1.png; a copy of it is."""
    dataset = dict(
        images=[dict(id=1, file_name='1.png')],
        categories=[dict(id=1, name='a')],
        annotations=[],
    )
    for split in ('train', 'val', 'copy'):
        (tmp_path / split).mkdir()
        (tmp_path / split / '1.png').write_text('a' if split == 'val' else 'b')
        (tmp_path / f'{split}.json').write_text(json.dumps(dataset))
    trained = dict(data_root=str(tmp_path), ann_file='train.json', data_prefix=dict(img='train/'))
    (tmp_path / 'config.py').write_text(f'train_dataloader = dict(dataset={trained!r})')

    def warning(split: str) -> str | None:
        judged = read_split(str(tmp_path / f'{split}.json'), str(tmp_path / split))
        return seen_in_training('some.pth', str(tmp_path / 'config.py'), judged)

    assert warning('val') is None
    for split in ('train', 'copy'):
        assert 'was trained on 1 of the 1 images' in str(warning(split))
    (tmp_path / 'train' / '1.png').unlink()  # what cannot be compared is taken for the same
    assert warning('val') is not None


def test_folds_are_trained_once_and_see_no_label_that_they_judge(
    pets,  # noqa: F811
    monkeypatch,
    capsys,
) -> None:
    trained = []

    class Done:
        returncode = 0

    def in_process(command: list[str]) -> Done:
        trained.append(command[4])
        args = train.parse_arguments([*command[4:], '--from-scratch'])
        train.run(args)
        return Done()

    monkeypatch.setattr(folds.subprocess, 'run', in_process)
    data, out = pets / 'pets', pets / 'out.json'
    words = ['--annotations', str(data / 'labels.json'), '--images', str(data / 'img')]
    words += ['--out', str(out), '--folds', '2', '--config', str(pets / 'tiny.py'), '--quiet']
    words += ['--work-dir', str(pets / 'folds'), '--device', 'cpu', '--least', '0']
    main(['find-label-errors', *words])
    assert len(trained) == 2
    first = out.read_bytes()
    seen = [
        {each['id'] for each in json.loads(path.read_text())['images']}
        for path in sorted((pets / 'folds').glob('fold_*/train.json'))
    ]
    assert seen[0] | seen[1] == set(range(1, 9))
    assert not seen[0] & seen[1]  # of two folds
    main(['find-label-errors', *words])  # goes on: nothing is left to train
    assert len(trained) == 2
    assert out.read_bytes() == first
    capsys.readouterr()
    words[words.index('--folds') + 1] = '3'
    assert 'another folds' in refused(capsys, *words)
    checkpoint = str(next((pets / 'folds' / 'fold_0').glob('epoch_*.pth')))
    plain = ['--annotations', str(data / 'labels.json'), '--images', str(data / 'img')]
    main(['find-label-errors', checkpoint, *plain, '--out', str(out), '--device', 'cpu'])
    assert re.search('warning: .* was trained on 4 of the 8 images', capsys.readouterr().err)
