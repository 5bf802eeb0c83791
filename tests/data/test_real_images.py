"""The vendored data files hold what scikit-learn's loaders return, and their licences lie beside them."""

import numpy as np

from hidecmoe_jax.data.real_images import FOLDER, PHOTOGRAPHS, handwritten_digits, photographs


def test_digits_and_photographs_are_those_of_scikit_learn():
    # Imported here: it takes seconds, and every process of a test run reads this file.
    from sklearn.datasets import load_digits, load_sample_images

    scans, values = handwritten_digits()
    known_scans, known_values = load_digits(return_X_y=True)
    np.testing.assert_array_equal(scans, known_scans)
    np.testing.assert_array_equal(values, known_values)
    assert (scans.dtype, values.dtype) == (known_scans.dtype, known_values.dtype)
    for photograph, known in zip(photographs(), load_sample_images().images, strict=True):
        np.testing.assert_array_equal(photograph, known)


def test_every_data_file_has_its_licence_beside_it():
    text = (FOLDER / "LICENSE.txt").read_text()
    names = {path.name for path in FOLDER.iterdir()} - {"LICENSE.txt"}
    assert names == {"digits.csv.gz", *PHOTOGRAPHS}
    assert all(f"\n{name}\n" in text for name in names)
    assert "creativecommons.org/licenses/by/" in text and "BSD 3-Clause License" in text
