"""The study on CIFAR-10: augmentation, focal posterior, binning, runs that are cut and go on."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gfl_det.errors import DataError
from gfl_det.models.losses.functional import focal_to_posterior
from projects.calibration_study import cifar, cifar_tables
from projects.calibration_study.classification_metrics import softmax


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two archives of plain pictures of two colours, and a study of one epoch on a few of them."""
    generator = np.random.default_rng(0)
    for name, number in (('train', 20), ('test', 6)):
        with zipfile.ZipFile(tmp_path / f'{name}.zip', 'w') as archive:
            for label, kind in enumerate(('cat', 'dog')):
                for index in range(number):
                    pixels = generator.integers(0, 60, (32, 32, 3)) + 150 * label
                    stored = io.BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(stored, 'JPEG')
                    archive.writestr(f'{kind}/{index:04}.jpg', stored.getvalue())
    for name, value in dict(TRAIN=24, HELD_OUT=16, EPOCHS=2, LOOK=1, BATCH=8).items():
        monkeypatch.setattr(cifar, name, value)
    monkeypatch.setattr(cifar, 'WORK', tmp_path / 'work')
    monkeypatch.setattr(cifar, 'RESULTS', tmp_path / 'results')
    return tmp_path


def test_crops_and_flips_are_those_of_a_loop() -> None:
    images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32) % 251
    found = cifar.augmented(images, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    top, left = torch.randint(0, 9, (2, 2, 1), generator=generator)
    flip = torch.rand(2, 1, generator=generator) < 0.5
    for index, image in enumerate(torch.nn.functional.pad(images, (4, 4, 4, 4))):
        row, column = int(top[index]), int(left[index])
        crop = image[:, row : row + 32, column : column + 32]
        assert torch.equal(found[index], crop.flip(2) if flip[index] else crop)


def test_the_focal_posterior_of_two_classes_is_that_of_the_sigmoid() -> None:
    score = np.linspace(0.02, 0.98, 25)
    found = cifar.focal_posterior(np.stack([score, 1 - score], 1), 2.0)[:, 0]
    expected = focal_to_posterior(torch.from_numpy(score), 2.0)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    same = cifar.focal_posterior(np.stack([score, 1 - score], 1), 0.0)
    np.testing.assert_allclose(same[:, 0], score)


def test_binned_confidence_has_no_error_on_what_it_was_fitted_on() -> None:
    generator = np.random.default_rng(0)
    probabilities = softmax(3 * generator.standard_normal((3000, 10)))
    labels = generator.integers(0, 10, 3000)
    pair = probabilities, labels
    assert cifar.binned_confidence(pair, pair) < 1e-9


def test_a_cut_training_goes_on_to_the_same_weights(data, monkeypatch) -> None:
    whole = cifar.parts(data, 0.0)
    straight, seen, _ = cifar.train('CE', 0, whole, data / 'straight.pth')
    looks = []

    def cut(*args):
        looks.append(args)
        if len(looks) == 2:
            raise KeyboardInterrupt
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(cifar, 'mechanism', cut)
        with pytest.raises(KeyboardInterrupt):
            cifar.train('CE', 0, whole, data / 'cut.pth')
    resumed, again, _ = cifar.train('CE', 0, whole, data / 'cut.pth')
    assert [each['epoch'] for each in again] == [each['epoch'] for each in seen] == [1, 2]
    weights = resumed.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in straight.state_dict().items())


def test_a_run_is_written_once(data, capsys) -> None:
    cifar.run(data, ['CE', 'FLSD-53'], [0, 1], 0.0)
    assert capsys.readouterr().err.count('ECE') == 4
    content = json.loads((data / 'results' / 'CE-noise0-seed0.json').read_text())
    assert len(content['mechanism']) == 2
    assert set(content['after']) == {'T by NLL', 'T by ECE', 'histogram', 'focal T'}
    cifar.run(data, ['CE', 'FLSD-53'], [0, 1], 0.0)
    assert not capsys.readouterr().err
    found = cifar_tables.tables(0.0)
    assert 'FLSD-53 < CE' in found['claims']
    assert 'tuning' not in found


def written(folder: Path, loss: str, seed: int, value: float) -> None:
    """A run whose measures are all one value."""
    measures = dict.fromkeys(cifar_tables.MEASURES, value)
    looks = [dict(epoch=epoch, **dict.fromkeys(cifar_tables.MECHANISM, value)) for epoch in (1, 2)]
    content = dict(loss=loss, seed=seed, noise=0.0, error=value, temperature=1, fitted_NLL=value)
    content['train_error'] = value
    content |= dict(before=measures, after={'T by NLL': measures}, mechanism=looks)
    (folder / f'{loss}-noise0-seed{seed}.json').write_text(json.dumps(content))


def test_of_a_family_the_member_counts_that_fits_the_held_out_pictures_best(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(cifar, 'RESULTS', tmp_path)
    for seed in range(3):
        written(tmp_path, 'CE', seed, 0.3)
        written(tmp_path, 'IFL-3', seed, 0.4)
    written(tmp_path, 'IFL-0.5', 0, 0.5)
    found = cifar_tables.tables(0.0)
    assert '| IFL-3 | .400 | chosen |' in found['tuning']
    assert 'CE < IFL-3' in found['claims']
    assert 'IFL-0.5' not in found['results']
    written(tmp_path, 'IFL-0.5', 0, 0.1)
    found = cifar_tables.tables(0.0)
    assert '| IFL-0.5 | .100 | chosen |' in found['tuning']
    assert 'claims' not in found  # one seed of it decides nothing
    assert cifar_tables.draw([0.0]).axes


def test_a_figure_of_no_runs_is_one_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cifar, 'RESULTS', tmp_path)
    assert cifar_tables.tables(0.0) == {}
    with pytest.raises(DataError, match='No run is there'):
        cifar_tables.draw([0.0])


def test_noise_draws_labels_anew_and_nothing_else(data) -> None:
    clean, noisy = cifar.parts(data, 0.0), cifar.parts(data, 0.5)
    assert all(torch.equal(one.images, two.images) for one, two in zip(clean, noisy))
    assert any((one.labels != two.labels).any() for one, two in zip(clean, noisy))


def test_a_folder_without_archives_is_one_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cifar, 'WORK', tmp_path / 'work')
    with pytest.raises(DataError, match=r'train\.zip is missing'):
        cifar.parts(tmp_path, 0.0)
