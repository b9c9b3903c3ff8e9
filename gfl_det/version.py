"""The version of gfl_det, read by setup.py as well."""

__version__ = '0.2.0'
