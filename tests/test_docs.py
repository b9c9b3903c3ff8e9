"""The pages of the docs: every block that is not marked as left out is run, on a tiny project."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

import gfl_det.datasets.digits.build as digits
from tests.helpers.doc_pages import NOT_RUN, commands, read_blocks, run_block
from tests.helpers.doc_project import (
    ANNOTATIONS,
    BEST,
    CHECKPOINT,
    TRAIN,
    VAL,
    WORK_DIR,
    write_project,
)
from tests.helpers.paths import ROOT

PAGES = ['README.md', *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('docs/**/*.md'))]
RUN = [page for page in PAGES if any(block.is_run for block in read_blocks(page))]
LANGUAGES = {'bash', 'python', 'text'}


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('docs') / 'project'
    folder.mkdir()
    write_project(folder)
    return folder


def use_random_weights(project: Path, folder: Path) -> None:
    """In the place of those of a training of a few steps, which find nothing."""
    for path in (folder / WORK_DIR).glob('*.pth*'):
        path.unlink()
    for path in (CHECKPOINT, BEST, ANNOTATIONS):
        shutil.copy(project / path, folder / path)


@pytest.mark.parametrize('page', RUN)
def test_the_blocks_of_a_page_run(page, project, tmp_path, monkeypatch) -> None:
    folder = tmp_path / 'project'
    if page == 'docs/tutorial.md':  # which makes the project
        folder.mkdir()
        build = digits.build_digits
        recipe = digits.DigitsRecipe(train=TRAIN, val=VAL)
        monkeypatch.setattr(digits, 'build_digits', lambda out, _: build(out, recipe, workers=0))
    else:
        shutil.copytree(project, folder)
    if page == 'README.md':  # whose reader has no training yet
        (folder / WORK_DIR / 'mine.py').unlink()
    monkeypatch.chdir(folder)
    names: dict = {'__name__': '__main__'}

    def after(command: str) -> None:
        if command == 'train':
            # What --data has planned is for another model than the weights that follow.
            (folder / WORK_DIR / 'config.py').unlink(missing_ok=True)
            shutil.copy(folder / 'mine.py', folder / WORK_DIR)
            assert (folder / CHECKPOINT).is_file()
            use_random_weights(project, folder)

    for block in read_blocks(page):
        if block.is_run:
            run_block(block, folder, names, after)


def test_blocks_have_a_language_and_reasons() -> None:
    for page in PAGES:
        for block in read_blocks(page):
            place = f'{page}:{block.line}'
            assert block.language in LANGUAGES, f'{place}: no language'
            assert block.title != NOT_RUN.strip(), f'{place}: a reason is missing'
            if block.language == 'bash' and block.is_run:
                assert commands(block.code), f'{place}: no command'


def test_the_main_path_is_run() -> None:
    """README and tutorial leave out only what installs, or takes minutes."""
    for page, names in (
        ('README.md', {'train', 'test', 'calibrate', 'infer', 'report'}),
        (
            'docs/tutorial.md',
            {'check', 'suggest-reg-max', 'train', 'test', 'calibrate', 'intervals', 'infer'},
        ),
    ):
        blocks = [block for block in read_blocks(page) if block.is_run]
        run = {
            words[1]
            for block in blocks
            if block.language == 'bash'
            for words in commands(block.code)
        }
        assert names <= run
        assert any(block.language == 'python' for block in blocks)


def test_readme_is_short_and_shows_a_picture_early() -> None:
    lines = (ROOT / 'README.md').read_text().splitlines()
    assert len(lines) <= 120
    assert any(line.startswith('![') for line in lines[:20])


def test_links_of_pages_outside_the_site_lead_somewhere() -> None:
    """Links within the site are checked where it is built."""
    for page in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md'):
        for target in re.findall(r'\]\((?!https?:)([^)#]+)', (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f'{page}: {target}'


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r'[\w/-]+\.md', str(_navigation())))
    assert {f'docs/{name}' for name in named} == set(PAGES) - {'README.md'}


def _navigation() -> list:
    settings = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
    return settings['nav']
