"""Command ``gfl-det models``: list published detectors and the ones already downloaded."""

from __future__ import annotations

import argparse

from gfl_det.cli.arguments import parsing
from gfl_det.compat.published import PublishedModel, cache_folder, published_models

EPILOG = """\
A name can replace a checkpoint: gfl-det infer gfl_r50_fpn_1x_coco picture.jpg fetches the weights
once. AP is that on COCO val2017 as published by MMDetection or the authors; the sizes of files not
yet fetched are estimated from the number of parameters, if the file holds nothing else. Without a
network, download the file (its address is shown by --urls) to the folder that is printed.
"""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='List the detectors whose weights are available by name.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--urls', action='store_true', help='also print the address of each file')
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Print the list.

    Raises:
        SetupError: If mmdet's list of models cannot be read.
    """
    found = published_models()
    width = max(len(each.name) for each in found)
    print(f'{"name":{width}}  {"AP":>4}  {"parameters":>10}  {"size":>8}  here')
    for each in found:
        print(
            f'{each.name:{width}}  {each.ap:4.1f}  {_millions(each)}  {_size(each)}  {_here(each)}'
        )
        if args.urls:
            print(f'    {each.url}')
    print(f'folder: {cache_folder()}')


def _millions(model: PublishedModel) -> str:
    count = model.parameters
    return f'{"?":>10}' if count is None else f'{count / 1e6:8.1f} M'


def _size(model: PublishedModel) -> str:
    size = model.size
    return f'{"?":>8}' if size is None else f'{size / 2**20:4.0f} MiB'


def _here(model: PublishedModel) -> str:
    return 'yes' if model.path.is_file() else 'no'
