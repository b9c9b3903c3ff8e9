"""Are the parts of a config that everything else looks into of the right kind?"""

from __future__ import annotations

from mmengine.config import Config

from gfl_det.errors import ConfigError

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def check_shape(cfg: Config, name: str) -> None:
    """Check the kinds of the model and of the data sets that a config has.

    Args:
        cfg: The config; it may lack parts.
        name: Its name for messages.

    Raises:
        ConfigError: A part is something else than a dict.
    """
    parts = {key: cfg.get(key) for key in ('model', *LOADERS)}
    for key in LOADERS:
        loader = parts[key]
        if isinstance(loader, dict) and 'dataset' in loader:
            parts[f'{key}.dataset'] = loader['dataset']
    for key, part in parts.items():
        is_needed = key.endswith('.dataset')
        if not isinstance(part, dict) and (part is not None or is_needed):
            raise ConfigError(
                f'{key} of {name} is {part!r:.60}, and not a dict(type=...): correct it.'
            )


def check_model(cfg: Config) -> None:
    """Check that there is a model.

    Raises:
        ConfigError: There is none.
    """
    if not cfg.get('model'):
        raise ConfigError(f'{cfg.filename or "The config"} has no model: add model=dict(type=...).')
