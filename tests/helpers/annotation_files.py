"""Malformed annotation files: odd values in each field, and odd files."""

from __future__ import annotations

import json
from collections.abc import Iterator

ODD = {
    'null': None,
    'true': True,
    'a text': 'x',
    'an empty text': '',
    'a text with a zero byte': 'a\0b',
    'half of a character': '\ud800',
    'terminal commands': '\x1b[2J\x1b]0;title\x07\r',
    'a long text': 'ab' * 50_000,
    'a path to a device': '/dev/zero',
    'a path upwards': '../' * 40 + 'etc/passwd',
    'zero': 0,
    'minus one': -1,
    'not a number': float('nan'),
    'infinity': float('inf'),
    'a huge number': 10**400,
    'a large size': 1e9,
    'a list': [],
    'a list of lists': [[1, 2], [3]],
    'an object': {'a': 1},
}
FIELDS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'ignore'),
    'categories': ('id', 'name'),
}
BOXES = {
    'three numbers': [1, 2, 3],
    'five numbers': [1, 2, 3, 4, 5],
    'texts': ['1', '2', '3', '4'],
    'nulls': [None] * 4,
    'not numbers': [float('nan')] * 4,
    'infinite': [0, 0, float('inf'), 5],
    'huge': [0, 0, 10**400, 5],
    'the largest float': [1.7e308, 1.7e308, 1.7e308, 1.7e308],
    'the smallest float': [5e-324] * 4,
    'negative': [5, 5, -3, -3],
    'true and false': [True, False, True, True],
    'nested': [[1, 2, 3, 4]],
    'an object': {'x': 1},
    'many numbers': list(range(10_000)),
}
SOUND = 'sound'


def sound() -> dict:
    """Two images of 64 x 48 with two boxes each, of two classes."""
    images = [dict(id=i, file_name=f'{i}.png', width=64, height=48) for i in (1, 2)]
    annotations = [
        dict(
            id=10 * i + k,
            image_id=i,
            category_id=k,
            bbox=[5 + i, 6 + k, 20 + k, 16],
            area=16 * (20 + k),
            iscrowd=0,
        )
        for i in (1, 2)
        for k in (1, 2)
    ]
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    return dict(images=images, annotations=annotations, categories=categories)


def annotation_files() -> Iterator[tuple[str, bytes]]:
    """Yield names and contents."""
    for key, fields in FIELDS.items():
        for field in fields:
            for name, value in ODD.items():
                yield f'{key}.{field} is {name}', _changed(key, field, value)
            yield f'{key} without {field}', _changed(key, field, None, drop=True)
    for name, value in BOXES.items():
        yield f'a box of {name}', _changed('annotations', 'bbox', value)
    for key in FIELDS:
        for name, value in ODD.items():
            yield f'{key} is {name}', _text({**sound(), key: value})
            if not isinstance(value, str) or len(value) < 100:
                yield f'{key} holds {name}', _text({**sound(), key: [*sound()[key], value]})
        yield f'without {key}', _text({k: v for k, v in sound().items() if k != key})
        yield f'{key} twice', _text({**sound(), key: sound()[key] * 2})
    for name, value in ODD.items():
        yield f'the file is {name}', _text(value)
    yield from _odd_texts()


def _odd_texts() -> Iterator[tuple[str, bytes]]:
    whole = _text(sound())
    yield SOUND, whole
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        yield f'torn at {share}', whole[: int(share * len(whole))]
    yield 'an empty file', b''
    yield 'blanks', b' \n' * 1000
    yield 'a picture', b'\x89PNG\r\n\x1a\n' + bytes(range(256))
    yield 'zeros', bytes(1000)
    yield 'UTF-16', whole.decode().encode('utf-16')
    yield 'UTF-8 with a mark', b'\xef\xbb\xbf' + whole
    yield 'Latin-1', whole.replace(b'cat', b'ch\xe4t')
    yield 'two files', whole + whole
    yield 'deep lists', b'[' * 200_000
    yield 'deep lists that end', b'[' * 100_000 + b']' * 100_000
    yield 'deep objects', b'{"a":' * 200_000
    yield 'a deep box', whole.replace(b'[6, 7, 21, 16]', b'[' * 50_000 + b']' * 50_000)
    yield 'a number of many digits', whole.replace(b'64', b'6' * 100_000)
    yield 'a number of a large exponent', whole.replace(b'64', b'1e999999999')
    yield 'keys twice', whole.replace(b'"id": 1,', b'"id": 1, "id": 2,')
    yield 'JSON lines', whole.replace(b', ', b'\n')
    yield 'single quotes', whole.replace(b'"', b"'")
    yield 'YAML', b'images:\n  - id: 1\n'
    yield 'Python', b'__import__("os").system("true")'
    yield 'a pickle', b'\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00}\x94.'
    yield 'XML', b'<!DOCTYPE a [<!ENTITY b "b">]><annotation>&b;</annotation>'


def _changed(key: str, field: str, value: object, drop: bool = False) -> bytes:
    dataset = sound()
    dataset[key][0][field] = value
    if drop:
        del dataset[key][0][field]
    return _text(dataset)


def _text(value: object) -> bytes:
    return json.dumps(value).encode()
