"""What mmdet imports for a few of its parts is imported when they are used, and then works."""

from __future__ import annotations

import sys

from gfl_det.compat.imports import late
from tests.helpers.forks import Script, run_scripts

STARTED = """
import sys
import gfl_det

slow = {'matplotlib', 'pandas', 'sklearn', 'scipy.optimize', 'scipy.stats'}
print(sorted(slow & sys.modules.keys()))
assert not any(type(module).__name__ == '_Later' for module in sys.modules.values())

import numpy as np
from mmdet.evaluation.metrics import crowdhuman_metric
from mmdet.models.dense_heads import paa_head
from mmdet.models.task_modules.assigners import hungarian_assigner
from mmdet.models.task_modules.tracking import interpolation, kalman_filter
from mmdet.utils import mot_error_visualize

rows, columns = hungarian_assigner.linear_sum_assignment(np.array([[3, 1], [1, 3]]))
print(columns.tolist())
found = crowdhuman_metric.maximum_bipartite_matching(crowdhuman_metric.csr_matrix(np.eye(2)))
print(found.tolist())
print(paa_head.skm.GaussianMixture(2).n_components)
print(kalman_filter.scipy.linalg.cho_factor(np.eye(1))[0].tolist())
curve = interpolation.GPR(interpolation.RBF(1.0, 'fixed')).fit([[0], [1]], [2, 3])
print(curve.predict([[1]]).round(6).tolist())
patch = mot_error_visualize.Rectangle((0, 0), 1, 1)
mot_error_visualize.plt.gca().add_patch(patch)
import matplotlib.pyplot
assert matplotlib.pyplot.gca().patches[0] is patch
"""

WITHIN = """
import sys
from gfl_det.compat.imports import late

with late():
    import scipy.stats  # not stood for: the library is imported
    from scipy.optimize import linear_sum_assignment
    from matplotlib.patches import Circle  # not known to be called alone
    from matplotlib.pyplot import figure
    import sklearn.mixture as mixture
    from sklearn.gaussian_process.kernels import RBF
    try:
        from sklearn.gaussian_process.kernels import Nothing
    except ImportError as error:
        print(error)
print(scipy.stats.norm.cdf(0), linear_sum_assignment.__module__)
print(isinstance(Circle, type), figure is sys.modules['matplotlib.pyplot'].figure)
print(mixture.GaussianMixture.__name__, RBF(2.0))
"""

FAILING = """
import sys
from gfl_det.compat.imports import late

before = list(sys.meta_path)
try:
    with late():
        import sklearn.mixture
        raise ZeroDivisionError
except ZeroDivisionError:
    print(sys.meta_path == before, {'sklearn', 'matplotlib'} & sys.modules.keys())
"""


def test_a_process_begins_without_what_few_parts_need(tmp_path) -> None:
    lines = run_scripts(sys.executable, [Script(STARTED, [], tmp_path)]).splitlines()
    assert lines == ['[]', '[1, 0]', '[0, 1]', '2', '[[1.0]]', '[3.0]']


def test_what_is_not_stood_for_is_imported_and_nothing_else_stays(tmp_path) -> None:
    scripts = [Script(WITHIN, [], tmp_path), Script(FAILING, [], tmp_path)]
    lines = run_scripts(sys.executable, scripts).splitlines()
    assert "cannot import name 'Nothing' from 'sklearn.gaussian_process.kernels'" in lines[0]
    assert lines[1:] == [
        '0.5 scipy.optimize._lsap',
        'True True',
        'GaussianMixture RBF(length_scale=2)',
        'True set()',
    ]


def test_what_is_imported_already_stays() -> None:
    import matplotlib.pyplot as before

    with late():
        import matplotlib.pyplot as within
    assert within is before
    assert sys.modules['matplotlib.pyplot'] is before
